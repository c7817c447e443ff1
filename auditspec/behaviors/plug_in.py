"""Plug-in readings of behaviours: the model is put to a state and evaluated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from auditspec.artifacts.remote import RemoteFunction
from auditspec.behaviors.bound import Scores, Slice
from auditspec.behaviors.scoring import Scoring, SharingShowsError
from auditspec.errors import EstimationError
from auditspec.record.batches import bytes_in
from auditspec.record.generators import Generators, go_to
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory

TOGETHER, TOGETHER_BYTES = 16, 2**24
"""Batches whose predictions are asked for in one question, of a `predict` in another process; and bytes of the models
that one question is about, with their predictions."""
Shared: TypeAlias = list[Slice]
"""Behaviours whose metrics take the same predictions, or one alone."""
Read = TypeVar("Read")


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
            return self._sharing_unseen(partial(self._at, state))

    def at_each(self, states: Iterable[State]) -> Iterator[dict[str, Scores]]:
        """`at` one state of the last stage's model after another; small ones are asked for together where
        `predict` is far away.
        """
        rerun, places = self.scoring.rerun, self._predicted_places(self._apart())
        predict = rerun.functions.predict
        if not isinstance(predict, RemoteFunction) or not 0 < len(places) <= TOGETHER:
            for state in states:
                yield self.at(state, None)
            return
        waiting, most = iter(states), 1
        while group := [*itertools.islice(waiting, most)]:
            rerun.enter(rerun.trajectory.stages[-1])
            with self.scoring.evaluating(), torch.no_grad():
                scores, size = self._sharing_unseen(partial(self._at_several, group, predict))
            yield from scores
            size += bytes_in(group[0].parameters)
            most = max(TOGETHER_BYTES // max(size, 1), 1)

    def _sharing_unseen(self, read: Callable[[Sequence[Shared]], Read]) -> Read:
        """A reading whose metrics share predictions; made again without, where code can tell."""
        device, memory = self.scoring.rerun.device, self.scoring.memory
        before, kept = Generators.now(device), dict(memory or {})
        try:
            return read(self._shared())
        except SharingShowsError:
            go_to(before.drawn_from(Generators.now(device)), device)
            if memory is not None:
                memory.clear()
                memory.update(kept)  # what was loaded meanwhile may have drawn numbers
            return read(self._apart())

    def _apart(self) -> list[Shared]:
        """Every behaviour whose scores are not those of an earlier one, by itself."""
        parts = [*self.slices.values()]
        return [[p] for n, p in enumerate(parts) if not any(q.scores_as(p) for q in parts[:n])]

    def _shared(self) -> list[Shared]:
        """The same, those that share predictions beside the first of them."""
        groups: list[Shared] = []
        for (part,) in self._apart():
            group = next((g for g in groups if g[0].predicted_as(part)), None)
            if group is None:
                groups.append([part])
            else:
                group.append(part)
        return groups

    def _at(self, state: State, groups: Sequence[Shared]) -> dict[str, Scores]:
        ahead = self._predicted_ahead(state, groups)
        if ahead is None:
            restore(state, self.scoring.rerun.model)
        return self._all_scores(groups, ahead)

    def _at_several(
        self, states: Sequence[State], predict: RemoteFunction, groups: Sequence[Shared]
    ) -> tuple[list[dict[str, Scores]], int]:
        """The scores at each state, and the bytes of one state's predictions."""
        places = self._predicted_places(groups)
        with self.scoring.unseen(sharing=_any_share(groups)):
            batches = [self.scoring.batch(part, rows) for part, rows in places]
            predicted = self.scoring.rerun.outputs_at(states, predict, batches)
        scores = [self._all_scores(groups, iter(at)) for at in predicted]
        return scores, bytes_in(predicted[0])

    def _all_scores(
        self, groups: Sequence[Shared], ahead: Iterator[Tensor] | None
    ) -> dict[str, Scores]:
        """The scores of every behaviour, of the model as it is."""
        scores: dict[str, Scores] = {}
        made: dict[str, Scores] = {}
        waiting = iter(groups)
        for name, part in self.slices.items():
            read = next((n for n in scores if self.slices[n].scores_as(part)), None)
            if read is None and name not in made:
                made |= self._scores(next(waiting), ahead)
            scores[name] = made[name] if read is None else scores[read]
            _require_sound(part, scores[name])
        return scores

    def _predicted_ahead(self, state: State, groups: Sequence[Shared]) -> Iterator[Tensor] | None:
        """Predictions at a state on every batch in turn, asked for together, of a `predict` that is far away."""
        predict, places = self.scoring.rerun.functions.predict, self._predicted_places(groups)
        if not isinstance(predict, RemoteFunction) or not places:
            return None
        return self._asked_for(state, places, sharing=_any_share(groups))

    def _predicted_places(self, groups: Sequence[Shared]) -> list[tuple[Slice, slice]]:
        """Every batch that scores are made of, where all are made of predictions; none otherwise."""
        if not all(group[0].foretold for group in groups):
            return []
        return [(group[0], rows) for group in groups for rows in self.scoring.batches(group[0])]

    def _asked_for(
        self, state: State, places: Sequence[tuple[Slice, slice]], *, sharing: bool
    ) -> Iterator[Tensor]:
        rerun = self.scoring.rerun
        for start in range(0, len(places), TOGETHER):
            asked = places[start : start + TOGETHER]
            with self.scoring.unseen(sharing=sharing):
                batches = [self.scoring.batch(part, rows) for part, rows in asked]
                (predicted,) = rerun.outputs_at([state], rerun.functions.predict, batches)
            yield from predicted

    def _scores(self, group: Shared, ahead: Iterator[Tensor] | None) -> dict[str, Scores]:
        batches = [
            [scores.double().cpu() for scores in self.scoring.scores(group, rows, ahead)]
            for rows in self.scoring.batches(group[0])
        ]
        return {
            part.behavior.id: torch.cat(scores).numpy()
            for part, scores in zip(group, map(list, zip(*batches, strict=True)), strict=True)
        }


def _any_share(groups: Sequence[Shared]) -> bool:
    return any(len(group) > 1 for group in groups)


def _require_sound(part: Slice, scores: Scores) -> None:
    """Refuse scores that say nothing.

    Raises:
        EstimationError: naming the behaviour.
    """
    name = part.behavior.id
    if not np.isfinite(scores).all():
        raise EstimationError(
            f"behaviour '{name}' gave NaN or infinity",
            "check the metric, and whether a counterfactual diverged",
        )
    if part.metric.binary and not np.isin(scores, (0.0, 1.0)).all():
        raise EstimationError(
            f"behaviour '{name}' is declared binary and scores other values than 0 and 1",
            "leave out `binary`, or score 0 or 1",
        )
    if not math.isfinite(part.statistic.level(scores)):
        raise EstimationError(
            f"the statistic '{part.behavior.statistic.words}' of behaviour '{name}' is not "
            "defined for its scores",
            "choose a statistic that is, or a slice with examples of every group",
        )
