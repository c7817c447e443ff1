"""How able a model is, so that a run may be told from a wreck: the share of the way from knowing
nothing to the best end of a recorded stage.

For classifiers it is accuracy on the rows outside the behaviour's slice, so that the fault itself does
not move it; knowing nothing is always saying the most frequent class. Elsewhere it is another behaviour
that the spec names, from its level for a prediction that knows nothing (or at the initial weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.metrics.classification import Accuracy
from auditspec.behaviors.statistics.mean import Mean
from auditspec.messages import Message, message
from auditspec.spec import models as spec

Scored = Mapping[str, Scores]
"""Scores of one state, by behaviour; those of `accuracies` by the name that it gives them."""
FEWEST_ROWS = 20
"""Rows outside the slice below which all rows are taken."""
SMALLEST_WAY = 0.05
"""Share of the whole way to perfection that the best state must have come for skill to mean anything."""
_PREFIX = "accuracy of "


def accuracies(reader: Evaluator, labels: Mapping[str, str | None]) -> list[spec.Behavior]:
    """Behaviours that read the accuracy on every row of each data set of which the true class is known.

    Args:
        reader: reads the spec's behaviours.
        labels: the column of true classes, by artifact name.
    """
    wanted = {
        part.behavior.data: part.behavior
        for part in reader.slices.values()
        if part.behavior.skill is None
        and part.behavior.metric.of_classes
        and labels.get(part.behavior.data)
    }
    return [
        behavior.model_copy(
            update={
                "id": _PREFIX + data,
                "metric": Accuracy(name="accuracy"),
                "statistic": Mean(name="mean"),
                "where": None,
            }
        )
        for data, behavior in wanted.items()
    ]


@dataclass(frozen=True)
class Skill:
    """How one behaviour's runs are measured."""

    words: Message
    """On what it is read."""
    goodness: Callable[[Scored], float]
    """Higher is better, in any unit."""
    nothing: float | None
    """The goodness of knowing nothing; None: that of the initial weights."""
    best_possible: float | None = None

    def shares(
        self, states: Mapping[str, Scored], recorded: Mapping[str, Scored]
    ) -> dict[str, float | None]:
        """Skill at each state of a run.

        Args:
            states: of the run, read.
            recorded: those of the recorded run, from which the best end and the start are taken.
        """
        ends = [self.goodness(s) for name, s in recorded.items() if name.endswith(":end")]
        start = recorded.get("initial")
        nothing = self.nothing
        if nothing is None:
            nothing = self.goodness(start) if start is not None else None
        if nothing is None or not ends:
            return dict.fromkeys(states)
        way = max(ends) - nothing
        whole = 1.0 if self.best_possible is None else self.best_possible - nothing
        if (way <= SMALLEST_WAY * whole and self.best_possible is not None) or way <= 0:
            return dict.fromkeys(states)
        return {name: (self.goodness(s) - nothing) / way for name, s in states.items()}


def skill_of(
    behavior: spec.Behavior,
    reader: Evaluator,
    labels: Mapping[str, str | None],
    uninformed: Mapping[str, float | None],
) -> Skill | None:
    """How skill is read for a behaviour; None where it cannot be.

    Args:
        behavior: of which the runs are judged.
        reader: reads the spec's behaviours.
        labels: the column of true classes, by artifact name.
        uninformed: each behaviour's level for a prediction that knows nothing, where it is known.
    """
    if behavior.skill is not None:
        other, part = behavior.skill, reader.slices[behavior.skill]
        concern, level = part.behavior.concern, part.statistic.level
        nothing = uninformed.get(other)
        return Skill(
            message("skill-of-behavior", behavior=other),
            lambda scores: -concern.signed(level(scores[other])),
            None if nothing is None else -concern.signed(nothing),
        )
    column = labels.get(behavior.data)
    if column is None or not behavior.metric.of_classes:
        return None
    part = reader.slices[behavior.id]
    classes = part.dataset.frame[column].to_numpy()
    rows = np.ones(len(classes), dtype=bool)
    rows[part.ids] = False
    outside = rows.sum() >= FEWEST_ROWS and len(np.unique(classes[rows])) > 1
    if not outside:
        rows[:] = True
    chosen: NDArray[np.bool_] = rows
    _, counts = np.unique(classes[chosen], return_counts=True)
    name = _PREFIX + behavior.data
    return Skill(
        message("accuracy-outside", dataset=behavior.data)
        if outside
        else message("accuracy-on-all", dataset=behavior.data),
        lambda scores: float(scores[name][chosen].mean()),
        float(counts.max() / counts.sum()),
        best_possible=1.0,
    )
