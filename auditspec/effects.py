"""A counterfactual, read: what leaving out one stage does to every behaviour, and how surely."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.bound import Scores, Slice
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.statistics import SliceStatistic
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError
from auditspec.estimator.counterfactual import Counterfactual, difference
from auditspec.estimator.paired.twin import TWIN_FACTOR, steadied
from auditspec.how_much import is_large
from auditspec.messages import Message, message
from auditspec.record.state import State
from auditspec.report.words import text

Ends = dict[str, tuple[dict[str, Scores], dict[str, Scores]] | None]
"""The behaviours of each stage's first and last state; None where they cannot be read."""


class Unread(NamedTuple):
    """A run that cannot be read."""

    why: str
    exact: bool
    """Whether it was trained as it would have been: then it is training that diverges, and not an estimate."""


@dataclass(frozen=True)
class StageEffects:
    """One stage's counterfactual, read: what it changes for every example, and so each behaviour's effect."""

    counterfactual: Counterfactual
    effects: dict[str, Scores]
    """Score of theta_K less that of theta_K without S, [n]."""
    plug_in: dict[str, Scores]
    """The same by evaluating the counterfactual; other than `effects` where those are read linearly, or beyond it."""
    linear: dict[str, Scores]
    """-grad of each score . delta, for differentiable behaviours."""
    own: dict[str, float] | None
    """The estimator's own estimate of the effect's error (`Statistic.distance`); None where it has none."""
    rung: dict[str, float]
    """The effect's distance to the rung below: the stage's displacement taken as it was at the stage's end,
    as if later stages had not changed it; 0 for an exact effect."""
    deployed: Mapping[str, Scores]
    """Scores of theta_K, [n]."""
    statistics: Mapping[str, SliceStatistic]

    @property
    def stage(self) -> str:
        """Its id."""
        return self.counterfactual.stage

    def effect(self, behavior: str) -> float:
        """gamma(theta_K) - gamma(theta_K without S)."""
        return self.statistics[behavior].effect(self.deployed[behavior], self.effects[behavior])

    def size(self, behavior: str) -> float:
        """How far the scores are from those without the stage (`Statistic.distance`)."""
        return self.statistics[behavior].size(self.deployed[behavior], self.effects[behavior])

    @property
    def unreliable(self) -> Message | None:
        """Why the estimate cannot know its own error; None where it can."""
        return self.counterfactual.unreliable


def read(
    reader: Evaluator,
    final: State,
    base: dict[str, Scores],
    c: Counterfactual,
    twin: Counterfactual | None = None,
) -> StageEffects:
    """Read one counterfactual, and its own error where it has a twin.

    The effect is plug-in, except that a first-order estimate of a differentiable behaviour is read
    linearly, as the score is defined.

    A behaviour that cannot be read linearly is left out of `linear`, and the counterfactual's notes say
    why; so are all where no effect is read so, and the model is so large that second derivatives take more than training did; the error is infinite where what it is held against cannot be read.

    Raises:
        EstimationError: if the counterfactual diverged, or a behaviour cannot be read.
    """
    refuse_given_up(c)
    if not np.isfinite(c.displacement):
        raise EstimationError(
            f"the counterfactual {c.arm.words} ({c.method}) diverges: its weights are not finite",
            "use estimator.method: replay"
            if not c.exact
            else "without this stage the later ones do not train; the effect is undefined",
        )
    ours, theirs = reader.plug_in(c.state), _other(reader, c, twin)
    plug_in = {name: base[name] - scores for name, scores in ours.items()}
    sloped = c.linear_reading or not is_large(reader.rerun.trajectory)
    slopes = reader.linear(final, {"arm": c.delta}) if sloped else {}
    linear = {n: -s["arm"] for n, s in slopes.items() if not isinstance(s, NotRun)}
    unread = [
        message("no-linear-reading", behavior=n, error=s.reason)
        for n, s in slopes.items()
        if isinstance(s, NotRun)
    ]
    effects = {
        name: base[name] - extrapolated(c, reader.slices[name], scores, theirs)
        for name, scores in ours.items()
    }
    if c.linear_reading:
        effects |= linear

    statistics = {name: part.statistic for name, part in reader.slices.items()}

    def apart(
        changes: Mapping[str, Scores], other: Mapping[str, Scores] | NotRun
    ) -> dict[str, float]:
        """How far changes are from those of another estimate; infinite where that cannot be read."""
        if isinstance(other, NotRun):
            return dict.fromkeys(effects, math.inf)
        return {
            name: statistics[name].effect_distance(
                base[name], changes[name], base[name] - other[name]
            )
            for name in effects
        }

    rung = dict.fromkeys(effects, 0.0)
    if not c.exact:
        below = unpropagated(reader.rerun, final, *c.arm.omitted)
        rung = apart(effects, attempt(lambda: reader.plug_in(below)))
    own = None
    if theirs is not None:
        own = {name: TWIN_FACTOR * far for name, far in apart(plug_in, theirs).items()}
    if c.unreliable:
        own = dict.fromkeys(effects, math.inf)
    noted = replace(c, notes=(*c.notes, *unread))
    return StageEffects(noted, effects, plug_in, linear, own, rung, base, statistics)


def refuse_given_up(c: Counterfactual) -> None:
    """Refuse to read a counterfactual that has no end.

    Raises:
        EstimationError: saying why it was given up.
    """
    if c.given_up and c.unreliable is not None:
        raise EstimationError(text(c.unreliable), "use estimator.method: replay")


def _other(
    reader: Evaluator, c: Counterfactual, twin: Counterfactual | None
) -> dict[str, Scores] | NotRun | None:
    """What a twin is read as; None where there is none that says anything."""
    if twin is None or same(c, twin):
        return None
    if twin.given_up and twin.unreliable is not None:
        return NotRun(text(twin.unreliable))
    return attempt(lambda: reader.plug_in(twin.state))


def extrapolated(
    c: Counterfactual, part: Slice, ours: Scores, theirs: Mapping[str, Scores] | NotRun | None
) -> Scores:
    """What an estimate is read as, from its own scores and those of its twin (`Counterfactual.beyond`).

    Only means of scores without bounds go beyond what was read: others, such as rates, could leave the range that they have.
    All scores are moved alike, by what their mean is: single ones are mostly noise, which would grow.
    """
    open_ended = part.statistic.statistic.linear and not part.bounded
    if not c.beyond or not open_ended or theirs is None or isinstance(theirs, NotRun):
        return ours
    return ours + c.beyond * float((ours - theirs[part.behavior.id]).mean())


def same(estimate: Counterfactual, twin: Counterfactual) -> bool:
    """Whether a twin sampled the very same steps, and so says nothing of the error."""
    return estimate.delta.keys() == twin.delta.keys() and all(
        torch.equal(d, twin.delta[name]) for name, d in estimate.delta.items()
    )


def with_steady_errors(readings: dict[str, StageEffects]) -> dict[str, StageEffects]:
    """The same readings, no stage's own error small by chance alone (`steadied`)."""
    stated = [
        (stage, name, error, reading.size(name))
        for stage, reading in readings.items()
        for name, error in (reading.own or {}).items()
    ]
    errors, sizes = (np.array([row[i] for row in stated], dtype=float) for i in (2, 3))
    own: dict[str, dict[str, float]] = {}
    for (stage, name, *_), error in zip(stated, steadied(errors, sizes), strict=True):
        own.setdefault(stage, {})[name] = float(error)
    return {s: replace(r, own=own[s]) if s in own else r for s, r in readings.items()}


def unpropagated(rerun: Engine, final: State, *stages: str) -> State:
    """theta_K + theta_a - theta_b: the stages' displacements, as if later stages kept them as they were."""
    state = final
    for index in sorted(map(rerun.trajectory.index, stages)):
        recorded = rerun.trajectory.stages[index]
        moved = difference(recorded.first.parameters, recorded.last.parameters)
        for later in range(index + 1, len(rerun.trajectory.stages)):
            moved = rerun.displaced(later, moved)
        state = State(_displaced(state.parameters, moved), _displaced(state.buffers, moved))
    return state


def _displaced(tensors: dict[str, Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t + moved[n].to(t) if n in moved else t for n, t in tensors.items()}
