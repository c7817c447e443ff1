"""Equalized odds: the same rates among those who are positive, and among those who are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import numpy as np

from auditspec.behaviors.statistics.by_group import ByGroup, Cells, at_largest, gap_unit, widest
from auditspec.behaviors.statistics.interface import Columns, Floats, Misfit
from auditspec.behaviors.statistics.truth import Value, is_value, misfit_of, other_class
from auditspec.results import Text
from auditspec.spec.measures import DeclaredMetric


@final
class EqualizedOdds(ByGroup):
    """The larger of two gaps between groups: among the positive examples, and among the others.

    For the rate of the positive class these are the gaps of the true and of the false positive rate (Hardt, Price &
    Srebro 2016; fairlearn's `equalized_odds_difference`).
    """

    name: Literal["equalized-odds"]
    truth: Text
    """The column that says who is positive."""
    positive: Value = 1

    @property
    def words(self) -> str:
        """Names the columns."""
        return (
            f"larger of the gaps between {self.grouped} where {self.truth} is {self.positive}, "
            "and where it is not"
        )

    @property
    def columns(self) -> Mapping[str, str]:
        """Groups and truth."""
        return {self.truth: "truth", **super().columns}

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """0 to the range of the scores."""
        return 0.0, most - least

    def unit(self, scores: str) -> str:
        """Of the scores; shares are some points apart."""
        return gap_unit(scores)

    def uninformed(self, score: float) -> float:
        """0: all groups are alike."""
        return 0.0

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """The metric scores the positive class."""
        return other_class(metric, self.positive) or super().misread(metric, direction)

    def misfit(self, columns: Columns) -> Misfit | None:
        """Some examples are positive, some are not, in at least two groups."""
        return misfit_of(columns, self.truth, self.positive) or super().misfit(columns)

    def cells(self, columns: Columns) -> Cells:
        """The others of every group, then the positive ones."""
        groups = self.every_group(columns)
        positive = is_value(columns[self.truth], self.positive)
        told = (f"{self.truth} not {self.positive}", f"{self.truth} {self.positive}")
        names = tuple(f"{name}, {truth}" for truth in told for name in groups.names)
        inside = groups.of + len(groups.names) * positive
        return Cells(np.where(groups.of >= 0, inside, -1), names)

    def cells_of(self, group: int, groups: Cells) -> tuple[int, ...]:
        """Its others, and its positive ones."""
        return group, group + len(groups.names)

    def combined(self, averages: Floats) -> Floats:
        """The larger of the two gaps."""
        return np.asarray(widest(_two(averages)).max(-1))

    def slopes(self, averages: Floats) -> Floats:
        """1 and -1 at the two that count."""
        two = _two(averages)
        each = (at_largest(two) - at_largest(-two)) * at_largest(widest(two))[..., None]
        return each.reshape(averages.shape)


def _two(averages: Floats) -> Floats:
    """Averages of cells [..., 2 K] as [..., 2, K]."""
    return averages.reshape(*averages.shape[:-1], 2, -1)
