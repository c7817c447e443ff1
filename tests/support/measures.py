"""One declaration of every metric and statistic, so that each new one is held to what all promise."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from auditspec.behaviors.metrics import Metric, Outputs
from auditspec.behaviors.statistics import Columns, Floats, Mean, Statistic
from auditspec.spec.measures import DeclaredMetric, OutputKind

CLASSES = 3
METRIC_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "nll": [{}],
    "accuracy": [{}],
    "probability": [{}, {"class": 2}],
    "logit-margin": [{"positive": 2, "negative": 0}],
    "rate": [{"class": 1}],
    "error": [{"unit": "points"}],
    "custom": [
        {"entrypoint": "train:score", "unit": "points"},
        {"entrypoint": "train:right", "unit": "share", "binary": True},
    ],
}
"""Options of each built-in metric, by name."""
FUNCTIONS = {
    "train:score": lambda model, batch: batch[:, 0] - batch[:, 1].tanh(),
    "train:right": lambda model, batch: (batch.argmax(1) == 1).to(batch.dtype),
}
"""The code artifact of the custom ones; a batch is the logits themselves."""


def metric_of(name: str, **options: Any) -> Metric:
    """A metric as a spec declares it."""
    metric = DeclaredMetric.of({"name": name, **options})
    assert isinstance(metric, Metric)
    return metric


def every_metric() -> list[Metric]:
    """Each built-in metric with each of its options."""
    return [metric_of(name, **o) for name, each in METRIC_OPTIONS.items() for o in each]


def scores(
    metric: Metric, logits: Tensor, labels: Tensor | None = None, kind: OutputKind | None = None
) -> Tensor:
    """Scores where the model gives these logits; or the first of them, to a metric of values."""
    known = torch.empty(0, dtype=torch.int64) if labels is None else labels
    values = kind is None and metric.reads == ("values",)

    def predict(model: torch.nn.Module, batch: Tensor) -> Tensor:
        return model(batch)[:, 0] if values else model(batch)

    return metric.scores(
        Outputs(torch.nn.Identity(), logits, known, predict, FUNCTIONS, kind or metric.reads[0])
    )


# --- statistics -----------------------------------------------------------------------------------


class Median(Statistic):
    """Median over the examples: not linear in them."""

    name: Literal["median"]
    words: ClassVar[str] = "median"

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        return least, most

    def level(self, scores: Floats, columns: Columns) -> Floats:
        level: Floats = np.asarray(np.median(scores, axis=0))
        return level


class Difference(Statistic):
    """Mean of one group less that of all else: linear, with a column beside the scores."""

    name: Literal["difference"]
    by: str
    group: int
    linear: ClassVar[bool] = True

    @property
    def words(self) -> str:
        return f"mean where {self.by} is {self.group} less the mean elsewhere"

    @property
    def columns(self) -> dict[str, str]:
        return {"by": self.by}

    def uninformed(self, score: float) -> float:
        return 0.0

    def level(self, scores: Floats, columns: Columns) -> Floats:
        ours = columns[self.by] == self.group
        if ours.all() or not ours.any():
            return np.full(scores.shape[1:], np.nan)
        level: Floats = np.asarray(scores[ours].mean(0) - scores[~ours].mean(0))
        return level


class Ratio(Statistic):
    """Mean of one group over that of all else: neither linear nor in the metric's unit."""

    name: Literal["ratio"]
    by: str
    group: int

    @property
    def words(self) -> str:
        return f"mean where {self.by} is {self.group} over the mean elsewhere"

    @property
    def columns(self) -> dict[str, str]:
        return {"by": self.by}

    def unit(self, scores: str) -> str:
        return "ratio"

    def level(self, scores: Floats, columns: Columns) -> Floats:
        ours = columns[self.by] == self.group
        if ours.all() or not ours.any():
            return np.full(scores.shape[1:], np.nan)
        level: Floats = np.asarray(scores[ours].mean(0) / scores[~ours].mean(0))
        return level


class Perplexity(Statistic):
    """Exponential of the mean."""

    name: Literal["perplexity"]
    words: ClassVar[str] = "exponential of the mean"

    def uninformed(self, score: float) -> float:
        return math.exp(score)

    def level(self, scores: Floats, columns: Columns) -> Floats:
        level: Floats = np.asarray(np.exp(scores.mean(0)))
        return level


BY = {"by": "sex", "group": 1}
STATISTIC_OPTIONS: dict[type[Statistic], dict[str, Any]] = {
    Mean: {},
    Median: {},
    Difference: BY,
    Ratio: BY,
    Perplexity: {},
}
"""The built-in statistics, and others as plug-ins may bring them, with options of each."""


def every_statistic() -> list[Statistic]:
    """One of each."""
    return [
        kind.model_validate({"name": kind.name, **options})
        for kind, options in STATISTIC_OPTIONS.items()
    ]
