"""One declaration of every metric, so that each new one is held to what all promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from auditspec.behaviors.metrics import Metric, Outputs
from auditspec.spec.measures import DeclaredMetric

CLASSES = 3
METRIC_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "nll": [{}],
    "accuracy": [{}],
    "probability": [{}, {"class": 2}],
    "logit-margin": [{"positive": 2, "negative": 0}],
    "rate": [{"class": 1}],
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


def scores(metric: Metric, logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Scores where the model gives these logits."""
    known = torch.empty(0, dtype=torch.int64) if labels is None else labels
    return metric.scores(
        Outputs(torch.nn.Identity(), logits, known, lambda model, batch: model(batch), FUNCTIONS)
    )
