"""One declaration of every metric and statistic, so that each new one is held to what all promise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from auditspec.behaviors.metrics import Asked, Metric, Outputs
from auditspec.behaviors.metrics.sequences import SequenceMetric
from auditspec.behaviors.statistics import Columns, Floats, Statistic
from auditspec.behaviors.statistics.calibration import Ece
from auditspec.behaviors.statistics.difference import Difference
from auditspec.behaviors.statistics.equalized_odds import EqualizedOdds
from auditspec.behaviors.statistics.mean import Mean
from auditspec.behaviors.statistics.perplexity import Perplexity
from auditspec.behaviors.statistics.quantile import Quantile
from auditspec.behaviors.statistics.ratio import Ratio
from auditspec.behaviors.statistics.regression import Bias, Mae, Rmse
from auditspec.behaviors.statistics.worst_group import WorstGroup
from auditspec.spec.measures import DeclaredMetric, DeclaredStatistic, OutputKind

CLASSES = 3
METRIC_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "nll": [{}],
    "accuracy": [{}],
    "probability": [{}, {"class": 2}],
    "logit-margin": [{"positive": 2, "negative": 0}],
    "rate": [{"class": 1}],
    "error": [{"unit": "points"}],
    "sequence-nll": [{"text": "text"}, {"text": "text", "prompt": "prompt", "per": "token"}],
    "completion-logprob": [
        {"prompt": "prompt", "completion": "text"},
        {"prompt": "prompt", "completion": "text", "normalize": "tokens"},
    ],
    "preference-margin": [{"prompt": "prompt", "chosen": "text", "rejected": "other"}],
    "choice": [
        {"prompt": "prompt", "choices": "several", "answer": "right"},
        {"prompt": "prompt", "choices": ["text", "other"], "answer": 0, "score": "margin"},
    ],
    "generation": [
        {"prompt": "prompt", "tokens": 2, "contains": [[1]]},
        {"prompt": "prompt", "tokens": 3, "answer": "other", "sample": {"draws": 5}},
    ],
    "exposure": [{"text": "other", "references": "several", "prompt": "prompt"}],
    "custom": [
        {"entrypoint": "train:score", "unit": "points"},
        {"entrypoint": "train:right", "unit": "share", "binary": True},
    ],
    "external": [],  # asks no model: tests/test_elsewhere.py
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
    if isinstance(metric, SequenceMetric):
        return of_sequences(metric, logits.reshape(len(logits), CLASSES))
    known = torch.empty(0, dtype=torch.int64) if labels is None else labels
    values = kind is None and metric.reads == ("values",)

    def predict(model: torch.nn.Module, batch: Tensor) -> Tensor:
        return model(batch)[:, 0] if values else model(batch)

    return metric.scores(
        Outputs(
            torch.nn.Identity(), logits, known, predict, FUNCTIONS, Asked(kind or metric.reads[0])
        )
    )


TOLD = 100
"""A token that tells the row of `of_sequences` is its number and this."""
TEXTS: dict[str, Any] = {"text": [2, 1], "other": [0], "several": [[1], [0, 2]], "right": 1}
"""Tokens of every row of `of_sequences`, by column."""


def of_sequences(metric: SequenceMetric, logits: Tensor) -> Tensor:
    """Scores where the logits of the next token, of the first `CLASSES`, are these in each row [n, C] at every place."""
    rows = range(len(logits))
    columns = {"prompt": [[TOLD + row] for row in rows]}
    columns |= {name: [value for _ in rows] for name, value in TEXTS.items()}
    if "text" in metric.columns and "prompt" not in metric.columns:
        columns["text"] = [[TOLD + row, *TEXTS["text"]] for row in rows]

    def predict(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        known = logits[ids[:, 0] - TOLD][:, None].expand(*ids.shape, CLASSES)
        return torch.nn.functional.pad(known, (0, 2 * TOLD), value=-1e9)

    numbers = (
        (1e9 * logits.detach()[:, 0].abs()).long().tolist()
    )  # a row keeps its own in any place
    examples = metric.examples(columns, rows, None)
    batch = [replace(e, row=number) for e, number in zip(examples, numbers, strict=True)]
    none = torch.empty(0, dtype=torch.int64)
    asked = Asked("token-logits")
    return metric.scores(Outputs(torch.nn.Identity(), batch, none, predict, {}, asked, 7))


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


class ExpMean(Statistic):
    """Exponential of the mean."""

    name: Literal["exp-mean"]
    words: ClassVar[str] = "exponential of the mean"

    def uninformed(self, score: float) -> float:
        return math.exp(score)

    def level(self, scores: Floats, columns: Columns) -> Floats:
        level: Floats = np.asarray(np.exp(scores.mean(0)))
        return level


BY = {"by": "sex"}
ODDS = {"truth": "won", "positive": 1}
STATISTIC_OPTIONS: dict[type[Statistic], list[dict[str, Any]]] = {
    Mean: [{}],
    Median: [{}],
    ExpMean: [{}],
    Perplexity: [{}],
    Difference: [
        BY,
        BY | {"group": 1},
        BY | {"group": 0, "reference": 1},
        BY | {"average": "rmse"},
        {"by": ["sex", "won"], "average": "mae"},
        {"by": ["sex", "won"], "group": [1, 0]},
    ],
    Ratio: [BY, {"by": ["won", "sex"], "average": "rmse"}],
    EqualizedOdds: [BY | ODDS],
    WorstGroup: [BY | {"worst": "highest"}, BY | {"worst": "lowest", "average": "bias"}],
    Quantile: [{"q": 0.5}, {"q": 0.9}],
    Ece: [ODDS, ODDS | {"bins": 3}],
    Mae: [{}],
    Rmse: [{}],
    Bias: [{}],
}
"""The built-in statistics, and others as plug-ins may bring them, with options of each.

Columns hold 0 and 1: `sex` is 1 for every third example, `won` for every other one.
"""


def statistic_of(name: str, **options: Any) -> Statistic:
    """A built-in statistic as a spec declares it."""
    statistic = DeclaredStatistic.of({"name": name, **options})
    assert isinstance(statistic, Statistic)
    return statistic


def every_statistic() -> list[Statistic]:
    """Each of them with each of its options."""
    return [
        kind.model_validate_json(json.dumps({"name": kind.name, **options}), strict=True)
        for kind, each in STATISTIC_OPTIONS.items()
        for options in each
    ]
