"""How far groups are apart: demographic parity of selection rates, equal opportunity among the positive."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from auditspec.behaviors.statistics.averages import AVERAGES
from auditspec.behaviors.statistics.by_group import ByGroup, Cells, at_largest, gap_unit, widest
from auditspec.behaviors.statistics.interface import Columns, Floats, Misfit
from auditspec.behaviors.statistics.truth import Value, is_value, listed
from auditspec.spec.measures import DeclaredMetric


@final
class Difference(ByGroup):
    """The largest average of a group less the smallest; or of a named group less that of others."""

    name: Literal["difference"]
    group: Value | tuple[Value, ...] | None = None
    """The group whose average is held against another, so that the difference has a sign. Of several columns, a value of each."""
    reference: Value | tuple[Value, ...] | None = None
    """The group whose average is taken from it; None: all other examples."""

    @property
    def words(self) -> str:
        """Names the groups."""
        average = AVERAGES[self.average].words
        if self.group is None:
            return f"largest less smallest {average} of {self.grouped}"
        others = "elsewhere" if self.reference is None else f"where {self._stated(self.reference)}"
        return f"{average} where {self._stated(self.group)} less the {average} {others}"

    @property
    def linear(self) -> bool:
        """Means of named groups."""
        return self.group is not None and self.average in ("mean", "bias")

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """0, or its opposite, to the whole range of the averages."""
        low, high = AVERAGES[self.average].bounds(least, most)
        return (0.0 if self.group is None else low - high), high - low

    def unit(self, scores: str) -> str:
        """Of the scores; shares are some points apart."""
        return gap_unit(scores)

    def uninformed(self, score: float) -> float | None:
        """0: all groups are alike."""
        return 0.0 if self.average == "mean" else None

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Groups have a value for each column, and a reference has a group beside it."""
        if self.group is None and self.reference is not None:
            return "reference without group: name the group that it is taken from"
        for named in (self.group, self.reference):
            if named is not None and len(_values(named)) != len(self.named):
                return f"{_shown(named)} is no group by {' and '.join(self.named)}"
        return super().misread(metric, direction)

    def cells(self, columns: Columns) -> Cells:
        """The groups; or the one that is named, and what it is held against."""
        if self.group is None:
            return self.every_group(columns)
        ours = self._is(columns, self.group)
        theirs = ~ours if self.reference is None else self._is(columns, self.reference)
        others = "all others" if self.reference is None else _shown(self.reference)
        return Cells(np.where(ours, 0, np.where(theirs, 1, -1)), (_shown(self.group), others))

    def left_out(self, columns: Columns) -> tuple[tuple[str, NDArray[np.bool_]], ...]:
        """None, where the groups that count are named."""
        return () if self.group is not None else super().left_out(columns)

    def misfit(self, columns: Columns) -> Misfit | None:
        """Named groups have enough examples."""
        if self.group is None:
            return super().misfit(columns)
        if wrong := self.without_group(columns):
            return wrong
        cells = self.cells(columns)
        for option, name, size in zip(
            ("group", "reference"), cells.names, cells.sizes, strict=True
        ):
            if size < self.floor:
                held = "; ".join(f"{c} holds {listed(columns[c])}" for c in self.named)
                reason = f"{name} has {size} examples, fewer than {self.floor}"
                return Misfit(option, reason, held if not size else "add examples, or lower floor")
        return None

    def combined(self, averages: Floats) -> Floats:
        """Largest less smallest, or the first less the second."""
        if self.group is None:
            return widest(averages)
        return averages[..., 0] - averages[..., 1]

    def slopes(self, averages: Floats) -> Floats:
        """1 and -1 at the two that count."""
        if self.group is None:
            return at_largest(averages) - at_largest(-averages)
        return np.broadcast_to(np.array([1.0, -1.0]), averages.shape)

    def _stated(self, group: Value | tuple[Value, ...]) -> str:
        each = zip(self.named, _values(group), strict=False)  # `misread` tells of what does not fit
        return " and ".join(f"{column} is {value}" for column, value in each)

    def _is(self, columns: Columns, group: Value | tuple[Value, ...]) -> NDArray[np.bool_]:
        each = zip(self.named, _values(group), strict=True)
        return np.asarray(np.logical_and.reduce([is_value(columns[c], v) for c, v in each]))


def _values(group: Value | tuple[Value, ...]) -> tuple[Value, ...]:
    return group if isinstance(group, tuple) else (group,)


def _shown(group: Value | tuple[Value, ...]) -> str:
    return ", ".join(map(str, _values(group)))
