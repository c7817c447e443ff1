"""Read behaviours off a model: plug-in (evaluate it) and linear (along a displacement)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.attempt import NotRun
from auditspec.behaviors.bound import Scores, Slice, bind
from auditspec.behaviors.linear import Linear
from auditspec.behaviors.metrics import AS_LOGITS, Asked
from auditspec.behaviors.metrics.sequences import first_batch
from auditspec.behaviors.plug_in import PlugIn
from auditspec.behaviors.score_table import Elsewhere
from auditspec.behaviors.scoring import Scoring
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory
from auditspec.spec import models as spec
from auditspec.spec.measures import OF_CLASSES


class Evaluator:
    """Evaluates behaviours on the model of a re-run, in eval mode.

    Args:
        rerun: gives the model, its device and precision, and `load_batch`.
        behaviors: what to evaluate.
        datasets: the evaluation data, by artifact name.
        labels: the column of true classes, by artifact name.
        custom: the callables of custom metrics, by entry point.
        batch_size: examples a forward pass.
        asked: what the training code's `predict` gives, and the tokenizer of the model's texts.

    Raises:
        EvidenceError: if a slice is empty, names a column that is not there, or labels are not
            classes.
    """

    def __init__(
        self,
        rerun: Engine,
        behaviors: Sequence[spec.Behavior],
        datasets: Mapping[str, Dataset],
        labels: Mapping[str, str | None],
        custom: Mapping[str, Callable[[nn.Module, Any], Tensor]],
        batch_size: int = 256,
        asked: Asked = AS_LOGITS,
    ) -> None:
        self.rerun = rerun
        self.asked = asked
        self.batch_size = batch_size
        self._batch_memory: dict[tuple[str, int], Any] | None = None
        self.custom = custom
        self.elsewhere: Elsewhere | None = None
        self._datasets = datasets
        self.slices = self._bound(behaviors, labels)

    def _bound(
        self, behaviors: Sequence[spec.Behavior], labels: Mapping[str, str | None]
    ) -> dict[str, Slice]:
        data, tokenizer = self._datasets, self.asked.tokenizer
        return {b.id: bind(b, data[b.data], labels.get(b.data), tokenizer) for b in behaviors}

    def thinned(self, rerun: Engine, most: int) -> tuple[Evaluator, dict[str, NDArray[np.int64]]]:
        """A reader of at most `most` examples of each behaviour, evenly spread, on another re-run; of one of every group at least.

        It keeps its batches, since it is to read many states.

        Returns:
            The reader, and the rows that it reads of each behaviour's scores.
        """
        reader, rows = copy(self), {}
        reader.rerun, reader.slices, reader._batch_memory = rerun, {}, {}
        for name, part in self.slices.items():
            rows[name] = part.statistic.spread_rows(len(part.ids), most)
            reader.slices[name] = part.at(rows[name])
        return reader, rows

    def fewer(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
        """How many examples rows of `thinned` are, of the behaviours of which they are not all."""
        return {n: len(r) for n, r in rows.items() if len(r) < len(self.slices[n].ids)}

    def with_scores(self, elsewhere: Elsewhere | None) -> Evaluator:
        """The same with scores that other tools made, for behaviours that are scored elsewhere."""
        reader = copy(self)
        reader.elsewhere = elsewhere
        return reader

    def of(self, behaviors: Sequence[spec.Behavior], labels: Mapping[str, str | None]) -> Evaluator:
        """A reader of other behaviours on the same data."""
        reader = copy(self)
        reader.slices = self._bound(behaviors, labels)
        return reader

    def classes(self, name: str, state: State) -> int | None:
        """How many classes the deployed model tells apart, read off its output on a behaviour's first example;
        None for a metric that does not look at it, and for outputs that are not of classes.
        """
        part, scoring = self.slices[name], self._scoring
        if not part.metric.predicts or self.asked.kind not in OF_CLASSES:
            return None
        self.rerun.enter(self.rerun.trajectory.stages[-1])
        restore(state, self.rerun.model)
        with scoring.evaluating(), torch.no_grad():
            batch = scoring.batch(part, slice(0, 1))
            return int(self.rerun.outputs(self.rerun.functions.predict, batch).shape[-1])

    def plug_in(self, state: State, stage: StageTrajectory | None = None) -> dict[str, Scores]:
        """gamma(theta) per example, for every behaviour.

        Args:
            state: theta.
            stage: the stage whose model theta belongs to; None: the last.

        Raises:
            EstimationError: if the model or a metric gives the wrong shape, NaN, or infinity, a statistic is
                not defined for the scores, or scores that are made elsewhere are missing.
        """
        scores = self._made_elsewhere(state)
        scores |= self._plug_in.at(state, stage)
        return {name: scores[name] for name in self.slices}

    def _made_elsewhere(self, state: State) -> dict[str, Scores]:
        parts = {n: p for n, p in self.slices.items() if p.metric.elsewhere}
        if not parts:
            return {}
        if self.elsewhere is None:
            raise EstimationError(f"'{next(iter(parts))}' has no scores")
        return {name: self.elsewhere.at(part, state) for name, part in parts.items()}

    def plug_ins(self, states: Iterable[State]) -> Iterator[dict[str, Scores]]:
        """`plug_in` at one state of the last stage's model after another; small ones are asked for together where
        `predict` is far away.
        """
        return self._plug_in.at_each(states)

    def first_outputs(self, state: State) -> dict[str, Tensor]:
        """What the model gives for each behaviour's first batch, [B, ...]: what is predicted, or scores that have a slope.

        Args:
            state: theta, of the last stage's model.
        """
        outputs, scoring = self.first_predictions(state), self._scoring
        with scoring.evaluating(), torch.no_grad():
            for name, part in self.slices.items():
                if name not in outputs and part.metric.differentiable:
                    outputs[name] = scoring.score(part, slice(0, self.batch_size))
        return outputs

    def first_predictions(self, state: State) -> dict[str, Tensor]:
        """What is predicted for the first batch of each behaviour that reads it, [B, ...].

        Args:
            state: theta, of the last stage's model.
        """
        self.rerun.enter(self.rerun.trajectory.stages[-1])
        restore(state, self.rerun.model)
        predict, scoring = self.rerun.functions.predict, self._scoring
        with scoring.evaluating(), torch.no_grad():
            return {
                name: self.rerun.outputs(predict, self._first_batch(part, scoring))
                for name, part in self.slices.items()
                if part.metric.predicts
            }

    def _first_batch(self, part: Slice, scoring: Scoring) -> Any:
        if part.metric.of_sequences:
            return first_batch(part.examples[: self.batch_size], self.rerun.device)
        return scoring.batch(part, slice(0, self.batch_size))

    def linear(
        self, state: State, deltas: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Scores] | NotRun]:
        """Grad gamma(theta) . delta per example, for every differentiable behaviour and stage.

        The directional derivative is taken by differentiating the vector-Jacobian product once
        more, which needs reverse mode only. A custom metric without a gradient is left out, and so
        is one whose slope is NaN or infinite; one whose slope cannot be computed says why.

        Args:
            state: theta, where the derivative is taken.
            deltas: a displacement of the parameters for each stage.
        """
        return self._linear.along(state, deltas)

    def slopes(self, state: State) -> dict[str, dict[str, Tensor] | NotRun]:
        """Grad of each differentiable behaviour's level at theta, per parameter.

        A behaviour is left out, or says why it has none, as in `linear`.

        Args:
            state: theta, where the derivative is taken.
        """
        return self._linear.slopes(state)

    def scored_again(self, state: State) -> dict[str, Scores]:
        """Scores [k, n] of behaviours that chance has a part in, by k different places of the random numbers.

        Raises:
            EstimationError: as `plug_in`.
        """
        scores = {}
        for name, part in self.slices.items():
            if part.metric.scorings > 1:
                again = (replace(self._scoring, chance=c) for c in range(part.metric.scorings))
                alone = [PlugIn(scoring, {name: part}).at(state, None) for scoring in again]
                scores[name] = np.stack([once[name] for once in alone])
        return scores

    @property
    def _scoring(self) -> Scoring:
        return Scoring(self.rerun, self.custom, self.batch_size, self._batch_memory, self.asked)

    @property
    def _plug_in(self) -> PlugIn:
        asked = {name: part for name, part in self.slices.items() if not part.metric.elsewhere}
        return PlugIn(self._scoring, asked)

    @property
    def _linear(self) -> Linear:
        return Linear(self._scoring, self.slices)
