"""Metrics: one number per evaluation example. Each is one class; its fields are its options in a spec."""

from __future__ import annotations

from auditspec.behaviors.metrics.choice import Choice
from auditspec.behaviors.metrics.classification import (
    Accuracy,
    LogitMargin,
    Nll,
    Probability,
    Rate,
)
from auditspec.behaviors.metrics.custom import Custom
from auditspec.behaviors.metrics.exposure import Exposure
from auditspec.behaviors.metrics.external import External
from auditspec.behaviors.metrics.generation import Generation
from auditspec.behaviors.metrics.interface import AS_LOGITS, Asked, Metric, Outputs
from auditspec.behaviors.metrics.likelihood import (
    CompletionLogprob,
    PreferenceMargin,
    SequenceNll,
)
from auditspec.behaviors.metrics.regression import Error
from auditspec.plugins import available

__all__ = ["AS_LOGITS", "METRICS", "Asked", "Metric", "Outputs", "classes"]

METRICS: tuple[type[Metric], ...] = (
    Nll,
    Accuracy,
    Probability,
    LogitMargin,
    Rate,
    Error,
    SequenceNll,
    CompletionLogprob,
    PreferenceMargin,
    Choice,
    Generation,
    Exposure,
    Custom,
    External,
)
"""The built-in ones."""


def classes() -> dict[str, type[Metric]]:
    """Every metric that a spec may name, those of plug-ins too.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    return available("metrics", METRICS, Metric)  # type: ignore[type-abstract]
