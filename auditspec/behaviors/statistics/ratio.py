"""The ratio of groups: the impact ratio, where averages are selection rates."""

from __future__ import annotations

from typing import Literal, final

import numpy as np

from auditspec.behaviors.statistics.averages import AVERAGES
from auditspec.behaviors.statistics.by_group import ByGroup, at_largest, widest
from auditspec.behaviors.statistics.interface import Floats
from auditspec.spec.measures import DeclaredMetric


@final
class Ratio(ByGroup):
    """The smallest average of a group over the largest: the impact ratio, of selection rates. 1 where all are 0."""

    name: Literal["ratio"]

    @property
    def words(self) -> str:
        """Names the columns."""
        return f"smallest over largest {AVERAGES[self.average].words} of {self.grouped}"

    def unit(self, scores: str) -> str:
        """None."""
        return "ratio"

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """0 to 1."""
        return 0.0, 1.0

    def uninformed(self, score: float) -> float | None:
        """1: all groups are alike."""
        return 1.0 if self.average == "mean" else None

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Averages must not be negative."""
        if AVERAGES[self.average].bounds(*metric.bounds)[0] < 0:
            return f"scores of {metric.name!r} may be negative, and ratios of such averages mean nothing"
        return super().misread(metric, direction)

    def combined(self, averages: Floats) -> Floats:
        """Smallest over largest."""
        most = np.where(np.isnan(averages), -np.inf, averages).max(-1)
        ratio = 1 - np.divide(widest(averages), most, out=np.zeros_like(most), where=most != 0)
        return np.where(np.isfinite(averages).sum(-1) < 2, np.nan, ratio)

    def slopes(self, averages: Floats) -> Floats:
        """1 / largest at the smallest, -smallest / largest^2 at the largest; 0 where all are 0."""
        high, low = at_largest(averages), at_largest(-averages)
        most = (high * np.nan_to_num(averages)).sum(-1, keepdims=True)
        least = (low * np.nan_to_num(averages)).sum(-1, keepdims=True)
        inverse = np.divide(1.0, most, out=np.zeros_like(most), where=most != 0)
        return np.asarray(low * inverse - high * least * inverse**2)
