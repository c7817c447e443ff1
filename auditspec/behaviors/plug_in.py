"""Plug-in readings of behaviours: the model is put to a state and evaluated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auditspec.artifacts.remote import RemoteFunction
from auditspec.behaviors.bound import Scores, Slice
from auditspec.behaviors.scoring import Scoring
from auditspec.errors import EstimationError
from auditspec.record.batches import bytes_in
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory

TOGETHER, TOGETHER_BYTES = 16, 2**24
"""Batches whose predictions are asked for in one question, of a `predict` in another process; and bytes of the models
that one question is about, with their predictions."""


@dataclass(frozen=True)
class PlugIn:
    """Reads behaviours by evaluating them."""

    scoring: Scoring
    slices: Mapping[str, Slice]
    """The behaviours, by id."""

    def at(self, state: State, stage: StageTrajectory | None) -> dict[str, Scores]:
        """gamma(theta) per example, for every behaviour.

        Args:
            state: theta.
            stage: the stage whose model theta belongs to; None: the last.

        Raises:
            EstimationError: if the model or a metric gives the wrong shape, NaN, or infinity, or a
                statistic is not defined for the scores.
        """
        rerun = self.scoring.rerun
        rerun.enter(stage or rerun.trajectory.stages[-1])
        with self.scoring.evaluating(), torch.no_grad():
            ahead = self._predicted_ahead(state)
            if ahead is None:
                restore(state, rerun.model)
            return self._all_scores(ahead)

    def at_each(self, states: Iterable[State]) -> Iterator[dict[str, Scores]]:
        """`at` one state of the last stage's model after another; small ones are asked for together where
        `predict` is far away.
        """
        rerun, places = self.scoring.rerun, self._predicted_places()
        predict = rerun.functions.predict
        if not isinstance(predict, RemoteFunction) or not 0 < len(places) <= TOGETHER:
            for state in states:
                yield self.at(state, None)
            return
        waiting, most = iter(states), 1
        while group := [*itertools.islice(waiting, most)]:
            rerun.enter(rerun.trajectory.stages[-1])
            with self.scoring.evaluating(), torch.no_grad():
                batches = [self.scoring.batch(part, rows) for part, rows in places]
                predicted = rerun.outputs_at(group, predict, batches)
                scores = [self._all_scores(iter(at)) for at in predicted]
            yield from scores
            size = bytes_in(group[0].parameters) + bytes_in(predicted[0])
            most = max(TOGETHER_BYTES // max(size, 1), 1)

    def _all_scores(self, ahead: Iterator[Tensor] | None) -> dict[str, Scores]:
        """The scores of every behaviour, of the model as it is."""
        scores: dict[str, Scores] = {}
        for name, part in self.slices.items():
            read = next((n for n in scores if self.slices[n].scores_as(part)), None)
            scores[name] = self._scores(part, ahead) if read is None else scores[read]
            if not np.isfinite(scores[name]).all():
                raise EstimationError(
                    f"behaviour '{name}' gave NaN or infinity",
                    "check the metric, and whether a counterfactual diverged",
                )
            if part.metric.binary and not np.isin(scores[name], (0.0, 1.0)).all():
                raise EstimationError(
                    f"behaviour '{name}' is declared binary and scores other values than 0 and 1",
                    "leave out `binary`, or score 0 or 1",
                )
            if not math.isfinite(part.statistic.level(scores[name])):
                raise EstimationError(
                    f"the statistic '{part.behavior.statistic.words}' of behaviour '{name}' is not "
                    "defined for its scores",
                    "choose a statistic that is, or a slice with examples of every group",
                )
        return scores

    def _predicted_ahead(self, state: State) -> Iterator[Tensor] | None:
        """Predictions at a state on every batch in turn, asked for together, of a `predict` that is far away."""
        predict, places = self.scoring.rerun.functions.predict, self._predicted_places()
        if not isinstance(predict, RemoteFunction) or not places:
            return None
        return self._asked_for(predict, state, places)

    def _predicted_places(self) -> list[tuple[Slice, slice]]:
        """Every batch that scores are made of, where all are made of predictions; none otherwise."""
        parts = [*self.slices.values()]
        read = [p for n, p in enumerate(parts) if not any(q.scores_as(p) for q in parts[:n])]
        if not all(part.metric.predicts for part in read):
            return []
        return [(part, rows) for part in read for rows in self.scoring.batches(part)]

    def _asked_for(
        self, predict: Callable[..., Any], state: State, places: Sequence[tuple[Slice, slice]]
    ) -> Iterator[Tensor]:
        for start in range(0, len(places), TOGETHER):
            batches = [
                self.scoring.batch(part, rows) for part, rows in places[start : start + TOGETHER]
            ]
            (predicted,) = self.scoring.rerun.outputs_at([state], predict, batches)
            yield from predicted

    def _scores(self, part: Slice, ahead: Iterator[Tensor] | None) -> Scores:
        batches = [
            self.scoring.score(part, rows, ahead).double().cpu()
            for rows in self.scoring.batches(part)
        ]
        scores: Scores = torch.cat(batches).numpy()
        return scores
