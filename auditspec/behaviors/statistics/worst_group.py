"""The group that fares worst."""

from __future__ import annotations

from typing import Literal, final

import numpy as np

from auditspec.behaviors.statistics.averages import AVERAGES
from auditspec.behaviors.statistics.by_group import ByGroup, at_largest
from auditspec.behaviors.statistics.interface import Floats
from auditspec.spec.measures import DeclaredMetric


@final
class WorstGroup(ByGroup):
    """The highest, or the lowest, average of a group."""

    name: Literal["worst-group"]
    worst: Literal["highest", "lowest"]

    @property
    def words(self) -> str:
        """Names the columns."""
        return f"{self.worst} {AVERAGES[self.average].words} of {self.grouped}"

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Those of the averages."""
        return AVERAGES[self.average].bounds(least, most)

    def uninformed(self, score: float) -> float | None:
        """The expected score."""
        return score if self.average == "mean" else None

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """The worst group is the one that is furthest towards the concern."""
        if (self.worst == "highest") is not (direction == "increase"):
            return f"the {self.worst} group is not the worst where an {direction} is the harm"
        return super().misread(metric, direction)

    def combined(self, averages: Floats) -> Floats:
        """Largest or smallest; NaN where no cell has examples."""
        sign = 1.0 if self.worst == "highest" else -1.0
        furthest = np.where(np.isnan(averages), -np.inf, sign * averages).max(-1)
        return np.where(np.isfinite(furthest), sign * furthest, np.nan)

    def slopes(self, averages: Floats) -> Floats:
        """1 at the one that counts."""
        return at_largest(averages if self.worst == "highest" else -averages)
