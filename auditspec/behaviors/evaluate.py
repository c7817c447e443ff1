"""Read behaviours off a model: plug-in (evaluate it) and linear (along a displacement)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.metrics import Metric, Outputs
from auditspec.behaviors.slices import select
from auditspec.behaviors.statistics import SliceStatistic, Statistic
from auditspec.engine.hessian_products import require_second_derivatives
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError, EvidenceError
from auditspec.record.batches import bytes_in
from auditspec.record.generators import seed
from auditspec.record.numerics import twice_differentiable
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory
from auditspec.spec import models as spec

Scores = NDArray[np.float64]
"""One number per example of a behaviour's slice, [n]."""
Found = TypeVar("Found")
TOGETHER, TOGETHER_BYTES = 16, 2**24
"""Batches whose predictions are asked for in one question, of a `predict` in another process; and bytes of the models
that one question is about, with their predictions."""


@dataclass(frozen=True)
class Slice:
    """A behaviour bound to its evaluation examples."""

    behavior: spec.Behavior
    dataset: Dataset
    ids: NDArray[np.int64]
    labels: Tensor
    """True classes, [n]; empty where the metric needs none."""

    @property
    def metric(self) -> Metric:
        """Scores the examples."""
        return cast(Metric, self.behavior.metric)  # a spec chooses among these

    def scores_as(self, other: Slice) -> bool:
        """Whether another slice has the same scores: those of the same metric on the same examples."""
        mine, yours = self.behavior, other.behavior
        return (mine.data, mine.where, mine.metric) == (yours.data, yours.where, yours.metric)

    @cached_property
    def statistic(self) -> SliceStatistic:
        """Makes one number of the scores.

        Raises:
            EvidenceError: if it reads a column that is not there.
        """
        chosen = cast(Statistic, self.behavior.statistic)  # the same
        columns = {
            name: _column(self.dataset, name, f"the statistic of '{self.behavior.id}'")[self.ids]
            for name in chosen.columns.values()
        }
        return SliceStatistic(chosen, columns)

    def uninformed(self, classes: int | None) -> float | None:
        """The level of a model that knows nothing; None where it is unknown.

        Args:
            classes: that the model tells apart; None where that is unknown.
        """
        score = None if classes is None else self.metric.uninformed(classes)
        return None if score is None else self.behavior.statistic.uninformed(score)

    @property
    def bounded(self) -> bool:
        """Whether the statistic has a smallest and a largest value."""
        return all(map(math.isfinite, self.behavior.statistic.bounds(*self.metric.bounds)))


class Evaluator:
    """Evaluates behaviours on the model of a re-run, in eval mode.

    Args:
        rerun: gives the model, its device and precision, and `load_batch`.
        behaviors: what to evaluate.
        datasets: the evaluation data, by artifact name.
        labels: the column of true classes, by artifact name.
        custom: the callables of custom metrics, by entry point.
        batch_size: examples a forward pass.

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
    ) -> None:
        self.rerun = rerun
        self.batch_size = batch_size
        self._batch_memory: dict[tuple[str, int], Any] | None = None
        self.custom = custom
        self.slices = {b.id: self._bind(b, datasets[b.data], labels.get(b.data)) for b in behaviors}

    def thinned(self, rerun: Engine, most: int) -> tuple[Evaluator, dict[str, NDArray[np.int64]]]:
        """A reader of at most `most` examples of each behaviour, evenly spread, on another re-run.

        It keeps its batches, since it is to read many states.

        Returns:
            The reader, and the rows that it reads of each behaviour's scores.
        """
        reader, rows = copy(self), {}
        reader.rerun, reader.slices, reader._batch_memory = rerun, {}, {}
        for name, part in self.slices.items():
            count = min(most, len(part.ids))
            rows[name] = np.linspace(0, len(part.ids) - 1, count).round().astype(np.int64)
            labels = part.labels[rows[name]] if len(part.labels) else part.labels
            reader.slices[name] = replace(part, ids=part.ids[rows[name]], labels=labels)
        return reader, rows

    def fewer(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
        """How many examples rows of `thinned` are, of the behaviours of which they are not all."""
        return {n: len(r) for n, r in rows.items() if len(r) < len(self.slices[n].ids)}

    def of(self, behaviors: Sequence[spec.Behavior], labels: Mapping[str, str | None]) -> Evaluator:
        """A reader of other behaviours on the same data."""
        reader = copy(self)
        datasets = {part.behavior.data: part.dataset for part in self.slices.values()}
        reader.slices = {
            b.id: self._bind(b, datasets[b.data], labels.get(b.data)) for b in behaviors
        }
        return reader

    def classes(self, name: str, state: State) -> int | None:
        """How many classes the deployed model tells apart, read off its output on a behaviour's first example;
        None for a metric that does not look at it.
        """
        part = self.slices[name]
        if not part.metric.predicts:
            return None
        self.rerun.enter(self.rerun.trajectory.stages[-1])
        restore(state, self.rerun.model)
        with self._evaluating(), torch.no_grad():
            batch = self._batch(part, slice(0, 1))
            return int(self.rerun.outputs(self.rerun.functions.predict, batch).shape[-1])

    def plug_in(self, state: State, stage: StageTrajectory | None = None) -> dict[str, Scores]:
        """gamma(theta) per example, for every behaviour.

        Args:
            state: theta.
            stage: the stage whose model theta belongs to; None: the last.

        Raises:
            EstimationError: if the model or a metric gives the wrong shape, NaN, or infinity, or a
                statistic is not defined for the scores.
        """
        self.rerun.enter(stage or self.rerun.trajectory.stages[-1])
        with self._evaluating(), torch.no_grad():
            ahead = self._predicted_ahead(state)
            if ahead is None:
                restore(state, self.rerun.model)
            return self._all_scores(ahead)

    def plug_ins(self, states: Iterable[State]) -> Iterator[dict[str, Scores]]:
        """`plug_in` at one state of the last stage's model after another; small ones are asked for together where
        `predict` is far away.
        """
        predict, places = self.rerun.functions.predict, self._predicted_places()
        if not isinstance(predict, RemoteFunction) or not 0 < len(places) <= TOGETHER:
            yield from map(self.plug_in, states)
            return
        waiting, most = iter(states), 1
        while group := [*itertools.islice(waiting, most)]:
            self.rerun.enter(self.rerun.trajectory.stages[-1])
            with self._evaluating(), torch.no_grad():
                batches = [self._batch(part, rows) for part, rows in places]
                predicted = self.rerun.outputs_at(group, predict, batches)
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

    def first_outputs(self, state: State) -> dict[str, Tensor]:
        """What the model gives for each behaviour's first batch, [B, ...]: what is predicted, or scores that have a slope.

        Args:
            state: theta, of the last stage's model.
        """
        self.rerun.enter(self.rerun.trajectory.stages[-1])
        restore(state, self.rerun.model)
        outputs = {}
        with self._evaluating(), torch.no_grad():
            for name, part in self.slices.items():
                rows = slice(0, self.batch_size)
                if part.metric.predicts:
                    predict = self.rerun.functions.predict
                    outputs[name] = self.rerun.outputs(predict, self._batch(part, rows))
                elif part.metric.differentiable:
                    outputs[name] = self._score(part, rows)
        return outputs

    def _predicted_ahead(self, state: State) -> Iterator[Tensor] | None:
        """Predictions at a state on every batch in turn, asked for together, of a `predict` that is far away."""
        predict, places = self.rerun.functions.predict, self._predicted_places()
        if not isinstance(predict, RemoteFunction) or not places:
            return None
        return self._asked_for(predict, state, places)

    def _predicted_places(self) -> list[tuple[Slice, slice]]:
        """Every batch that scores are made of, where all are made of predictions; none otherwise."""
        parts = [*self.slices.values()]
        read = [p for n, p in enumerate(parts) if not any(q.scores_as(p) for q in parts[:n])]
        if not all(part.metric.predicts for part in read):
            return []
        return [(part, rows) for part in read for rows in self._batches(part)]

    def _asked_for(
        self, predict: Callable[..., Any], state: State, places: Sequence[tuple[Slice, slice]]
    ) -> Iterator[Tensor]:
        for start in range(0, len(places), TOGETHER):
            batches = [self._batch(part, rows) for part, rows in places[start : start + TOGETHER]]
            (predicted,) = self.rerun.outputs_at([state], predict, batches)
            yield from predicted

    def _scores(self, part: Slice, ahead: Iterator[Tensor] | None) -> Scores:
        batches = [self._score(part, rows, ahead).double().cpu() for rows in self._batches(part)]
        scores: Scores = torch.cat(batches).numpy()
        return scores

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
        # A parameter that is frozen at the end may have been trained before, and moves gamma too.
        self.rerun.enter(self.rerun.trajectory.stages[-1], differentiate=True)
        restore(state, self.rerun.model)
        parameters = {n: p for n, p in self.rerun.model.named_parameters() if p.requires_grad}
        with self._evaluating(), torch.enable_grad(), twice_differentiable():
            return self._of_differentiable(lambda part: self._along(part, parameters, deltas))

    def _along(
        self,
        part: Slice,
        parameters: Mapping[str, Tensor],
        deltas: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Scores]:
        """A behaviour's slope along each displacement; empty where there is none."""
        slopes: dict[str, list[Tensor]] = {stage: [] for stage in deltas}
        for rows in self._batches(part):
            gamma = self._score(part, rows)
            if not gamma.requires_grad:
                return {}
            for stage, slope in _directional(gamma, parameters, deltas).items():
                slopes[stage].append(slope.double().cpu())
        whole = {stage: torch.cat(parts).numpy() for stage, parts in slopes.items()}
        return whole if all(np.isfinite(slope).all() for slope in whole.values()) else {}

    def _of_differentiable(
        self, compute: Callable[[Slice], dict[str, Found]]
    ) -> dict[str, dict[str, Found] | NotRun]:
        """Something of each differentiable behaviour that has it, or why it could not be computed."""
        computed = {
            name: attempt(partial(compute, part))
            for name, part in self.slices.items()
            if part.metric.differentiable
        }
        return {
            name: result
            for name, result in computed.items()
            if isinstance(result, NotRun) or result
        }

    def slopes(self, state: State) -> dict[str, dict[str, Tensor] | NotRun]:
        """Grad of each differentiable behaviour's level at theta, per parameter.

        A behaviour is left out, or says why it has none, as in `linear`; a statistic whose slope depends on
        the scores has none.

        Args:
            state: theta, where the derivative is taken.
        """
        self.rerun.enter(self.rerun.trajectory.stages[-1], differentiate=True)
        restore(state, self.rerun.model)
        parameters = {n: p for n, p in self.rerun.model.named_parameters() if p.requires_grad}
        with self._evaluating(), torch.enable_grad():
            return self._of_differentiable(lambda part: self._slope(part, parameters))

    def _slope(self, part: Slice, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of a behaviour's level; empty where there is none."""
        statistic = part.behavior.statistic
        weights = part.statistic.weights(len(part.ids))
        if weights is None:
            raise EstimationError(
                f"the slope of '{part.behavior.id}' is not known, since its statistic is the {statistic.words}",
                "leave out estimator.contributions",
            )
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for rows in self._batches(part):
            gamma = self._score(part, rows)
            if not gamma.requires_grad:
                return {}
            gradients = torch.autograd.grad(
                gamma,
                list(parameters.values()),
                grad_outputs=torch.from_numpy(weights[rows]).to(gamma),
                allow_unused=True,
            )
            for n, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    total[n] += g
        return total if all(bool(torch.isfinite(g).all()) for g in total.values()) else {}

    def _bind(self, behavior: spec.Behavior, dataset: Dataset, label: str | None) -> Slice:
        ids = select(dataset.frame, behavior.where)
        column = label if behavior.metric.labelled else None
        return Slice(behavior, dataset, ids, _labels(dataset, column, ids))

    def _batches(self, part: Slice) -> Iterator[slice]:
        for start in range(0, len(part.ids), self.batch_size):
            yield slice(start, start + self.batch_size)

    def _score(self, part: Slice, rows: slice, ahead: Iterator[Tensor] | None = None) -> Tensor:
        ids = part.ids[rows]
        labels, predict = part.labels[rows].to(self.rerun.device), self.rerun.functions.predict
        batch: Any = None
        if ahead is None:
            batch = self._batch(part, rows)
        else:
            predict = _Predicted(next(ahead))

        def metric(model: nn.Module, batch: Any) -> Tensor:
            return part.metric.scores(Outputs(model, batch, labels, predict, self.custom))

        scores: Tensor = self.rerun.outputs(metric, batch)
        if scores.shape != (len(ids),):
            raise EstimationError(
                f"behaviour '{part.behavior.id}' gave a tensor of shape {tuple(scores.shape)} "
                f"for {len(ids)} examples",
                "a metric gives one number per example",
            )
        return scores

    def _batch(self, part: Slice, rows: slice) -> Any:
        place = (part.behavior.id, rows.start)
        if self._batch_memory is None or place not in self._batch_memory:
            batch = self.rerun.load(part.dataset, part.ids[rows].tolist())
            if self._batch_memory is None:
                return batch
            self._batch_memory[place] = batch
        return deepcopy(self._batch_memory[place])  # a predict may work in place

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with self.rerun.evaluating():
            seed(0)  # a predict that draws numbers draws the same ones in every world
            yield


@dataclass(frozen=True)
class _Predicted:
    """A prediction that is there already, in place of the function that gave it."""

    value: Tensor

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.value


def _directional(
    gamma: Tensor, parameters: Mapping[str, Tensor], deltas: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """D gamma / d theta . delta for each stage, [B]."""
    probe = torch.zeros_like(gamma, requires_grad=True)
    pulled = torch.autograd.grad(
        gamma, list(parameters.values()), grad_outputs=probe, create_graph=True, allow_unused=True
    )
    reached = {n: g for n, g in zip(parameters, pulled, strict=True) if g is not None}
    require_second_derivatives(reached)
    slopes = {}
    for stage, delta in deltas.items():
        directions = [delta[n].to(g) for n, g in reached.items()]
        (slopes[stage],) = torch.autograd.grad(
            list(reached.values()), probe, grad_outputs=directions, retain_graph=True
        )
    return slopes


def _column(dataset: Dataset, name: str, reader: str) -> NDArray[Any]:
    """A column of the evaluation table, [rows]."""
    if name not in dataset.frame:
        raise EvidenceError(
            f"data set '{dataset.name}' has no column '{name}' for {reader}",
            f"columns: {', '.join(map(str, dataset.frame.columns[:20]))}",
        )
    values: NDArray[Any] = dataset.frame[name].to_numpy()
    return values


def _labels(dataset: Dataset, column: str | None, ids: NDArray[np.int64]) -> Tensor:
    if column is None:
        return torch.empty(0, dtype=torch.int64)
    values = _column(dataset, column, "its label")[ids]
    if not np.issubdtype(values.dtype, np.integer) or (len(values) and values.min() < 0):
        raise EvidenceError(
            f"column '{column}' of data set '{dataset.name}' does not hold classes",
            "store the true classes as integers from 0",
        )
    return torch.from_numpy(values.astype(np.int64))
