"""A behaviour bound to its evaluation examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.tokenizer import Tokenizer
from auditspec.behaviors.metrics import Metric
from auditspec.behaviors.metrics.sequences import Example, SequenceMetric
from auditspec.behaviors.slices import select
from auditspec.behaviors.statistics import Columns, SliceStatistic, Statistic
from auditspec.errors import EvidenceError
from auditspec.spec import models as spec
from auditspec.spec.measures import TOKENS

Scores = NDArray[np.float64]
"""One number per example of a behaviour's slice, [n]."""


@dataclass(frozen=True)
class Slice:
    """A behaviour bound to its evaluation examples."""

    behavior: spec.Behavior
    dataset: Dataset
    ids: NDArray[np.int64]
    labels: Tensor
    """True classes, [n], or true values where the metric reads values; empty where it needs none."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Groups of the slice that its statistic does not count, with their examples: these are none of `ids`."""
    examples: tuple[Example, ...] = ()
    """What is asked about each of `ids`, by a metric of token sequences; empty for others."""

    @property
    def metric(self) -> Metric:
        """Scores the examples."""
        return cast(Metric, self.behavior.metric)  # a spec chooses among these

    def scores_as(self, other: Slice) -> bool:
        """Whether another slice has the same scores: those of the same metric on the same examples."""
        same_rows = self.dataset is other.dataset and np.array_equal(self.ids, other.ids)
        return same_rows and self.behavior.metric == other.behavior.metric

    def predicted_as(self, other: Slice) -> bool:
        """Whether another slice has the same predictions: both metrics look at those of the same examples."""
        both = self.foretold and other.foretold
        return both and self.dataset is other.dataset and np.array_equal(self.ids, other.ids)

    @property
    def foretold(self) -> bool:
        """Whether scores of a batch are made of one prediction, of what `load_batch` gives."""
        return self.metric.predicts and not self.metric.of_sequences

    def at(self, rows: NDArray[np.int64]) -> Slice:
        """Some of the examples."""
        labels = self.labels[rows] if len(self.labels) else self.labels
        examples = tuple(self.examples[r] for r in rows) if self.examples else ()
        return replace(self, ids=self.ids[rows], labels=labels, examples=examples)

    @cached_property
    def statistic(self) -> SliceStatistic:
        """Makes one number of the scores.

        Raises:
            EvidenceError: if it reads a column that is not there.
        """
        chosen = cast(Statistic, self.behavior.statistic)  # the same
        columns = _columns(self.behavior, self.dataset, self.ids)
        if chosen.reads_tokens:
            tokens = [sum(s.scored for s in example.sequences) for example in self.examples]
            columns = {**columns, TOKENS: np.array(tokens)}
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


def bind(
    behavior: spec.Behavior,
    dataset: Dataset,
    label: str | None,
    tokenizer: Tokenizer | None = None,
) -> Slice:
    """Find a behaviour's examples.

    Args:
        behavior: to be evaluated.
        dataset: the evaluation data.
        label: the column of true classes or values, where there is one.
        tokenizer: of the model's texts, where there is one.

    Raises:
        EvidenceError: if the slice is empty, names a column that is not there, or labels are not what
            the metric reads, or rows do not hold the texts that it asks about.
    """
    ids, left_out = _counted(behavior, dataset, select(dataset.frame, behavior.where))
    if isinstance(behavior.metric, SequenceMetric):
        metric, reader = behavior.metric, f"the metric of '{behavior.id}'"
        columns = {name: _column(dataset, name, reader) for name in metric.columns}
        examples = tuple(metric.examples(columns, ids.tolist(), tokenizer))
        none = torch.empty(0, dtype=torch.int64)
        return Slice(behavior, dataset, ids, none, left_out, examples)
    if not behavior.metric.labelled or label is None:
        return Slice(behavior, dataset, ids, torch.empty(0, dtype=torch.int64), left_out)
    read = _values if "values" in behavior.metric.reads else _classes
    return Slice(behavior, dataset, ids, read(dataset, label, ids), left_out)


def _counted(
    behavior: spec.Behavior, dataset: Dataset, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[tuple[str, int], ...]]:
    """The examples that the statistic counts, and how many it leaves out with each group."""
    statistic = cast(Statistic, behavior.statistic)
    left_out = statistic.left_out(_columns(behavior, dataset, ids))
    if not left_out:
        return ids, ()
    counted = ids[~np.logical_or.reduce([rows for _, rows in left_out])]
    return counted, tuple((name, int(rows.sum())) for name, rows in left_out)


def _columns(behavior: spec.Behavior, dataset: Dataset, ids: NDArray[np.int64]) -> Columns:
    """What the statistic reads beside the scores."""
    reader = f"the statistic of '{behavior.id}'"
    return {name: _column(dataset, name, reader)[ids] for name in behavior.statistic.columns}


def _column(dataset: Dataset, name: str, reader: str) -> NDArray[Any]:
    """A column of the evaluation table, [rows]."""
    if name not in dataset.frame:
        raise EvidenceError(
            f"data set '{dataset.name}' has no column '{name}' for {reader}",
            f"columns: {', '.join(map(str, dataset.frame.columns[:20]))}",
        )
    values: NDArray[Any] = dataset.frame[name].to_numpy()
    return values


def _values(dataset: Dataset, column: str, ids: NDArray[np.int64]) -> Tensor:
    values = _column(dataset, column, "its label")[ids]
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise EvidenceError(
            f"column '{column}' of data set '{dataset.name}' does not hold a number in every row",
            "store the true values as numbers",
        )
    return torch.from_numpy(values.astype(np.float64))


def _classes(dataset: Dataset, column: str, ids: NDArray[np.int64]) -> Tensor:
    values = _column(dataset, column, "its label")[ids]
    if not np.issubdtype(values.dtype, np.integer) or (len(values) and values.min() < 0):
        raise EvidenceError(
            f"column '{column}' of data set '{dataset.name}' does not hold classes",
            "store the true classes as integers from 0",
        )
    return torch.from_numpy(values.astype(np.int64))
