"""Statistics: one number of a model's scores on a slice. Each is one class; its fields are its options in a spec."""

from __future__ import annotations

from auditspec.behaviors.statistics.calibration import Ece
from auditspec.behaviors.statistics.difference import Difference
from auditspec.behaviors.statistics.equalized_odds import EqualizedOdds
from auditspec.behaviors.statistics.interface import (
    Columns,
    Counts,
    Floats,
    Group,
    Misfit,
    SliceStatistic,
    Statistic,
)
from auditspec.behaviors.statistics.mean import Mean
from auditspec.behaviors.statistics.perplexity import Perplexity
from auditspec.behaviors.statistics.quantile import Quantile
from auditspec.behaviors.statistics.ratio import Ratio
from auditspec.behaviors.statistics.regression import Bias, Mae, Rmse
from auditspec.behaviors.statistics.worst_group import WorstGroup
from auditspec.plugins import available

__all__ = [
    "STATISTICS",
    "Columns",
    "Counts",
    "Floats",
    "Group",
    "Misfit",
    "SliceStatistic",
    "Statistic",
    "classes",
]

STATISTICS: tuple[type[Statistic], ...] = (
    Mean,
    Difference,
    Ratio,
    EqualizedOdds,
    WorstGroup,
    Quantile,
    Ece,
    Mae,
    Rmse,
    Bias,
    Perplexity,
)
"""The built-in ones."""


def classes() -> dict[str, type[Statistic]]:
    """Every statistic that a spec may name, those of plug-ins too.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    return available("statistics", STATISTICS, Statistic)  # type: ignore[type-abstract]
