"""What may be averaged over examples: h(mean of g(scores)), with its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from auditspec.behaviors.statistics.interface import Floats
from auditspec.spec.measures import DeclaredMetric

AverageName = Literal["mean", "mae", "rmse", "bias"]
Map: TypeAlias = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Average:
    """h(mean of g(scores)): 1-Lipschitz in the root mean square of the scores."""

    words: str
    of_errors: bool
    """Whether scores must be errors of predicted values for it to mean anything."""
    g: Map
    g_slope: Map
    h: Map
    h_slope: Map
    """By h itself, at which it is taken."""

    def misread(self, metric: DeclaredMetric) -> str:
        """Why scores of a metric cannot be averaged so; empty where they can."""
        if self.of_errors and metric.predicts and "values" not in metric.reads:
            return (
                f"the {self.words} is of errors of predicted values, and {metric.name!r} gives none"
            )
        return ""

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Of the average, from those of the scores."""
        if self.g is _same:
            return least, most
        return max(0.0, least, -most), max(-least, most)


def _same(x: Floats) -> Floats:
    return x


def _root_slope(root: Floats) -> Floats:
    """1 / (2 h), and 0 where h is 0."""
    slope: Floats = np.divide(0.5, root, out=np.zeros_like(root), where=root > 0)
    return slope


AVERAGES: Mapping[AverageName, Average] = {
    "mean": Average("mean", False, _same, np.ones_like, _same, np.ones_like),
    "mae": Average("mean absolute error", True, np.abs, np.sign, _same, np.ones_like),
    "rmse": Average(
        "root mean square error", True, np.square, lambda x: 2 * x, np.sqrt, _root_slope
    ),
    "bias": Average("mean error", True, _same, np.ones_like, _same, np.ones_like),
}
