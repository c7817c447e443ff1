"""What compares groups of examples: by a column of the evaluation table, or intersections of several.

Names and signs are fairlearn's (`MetricFrame.difference`, `.ratio`, `.group_max`, `.group_min`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from auditspec.behaviors.statistics.averages import AVERAGES, AverageName
from auditspec.behaviors.statistics.interface import (
    Columns,
    Counts,
    Floats,
    Group,
    Misfit,
    Statistic,
    student,
)
from auditspec.behaviors.statistics.mean import agresti_min
from auditspec.behaviors.statistics.truth import missing
from auditspec.results import DIFFERENCE_OF_SHARES, Text
from auditspec.spec.measures import DeclaredMetric


@dataclass(frozen=True)
class Cells:
    """A partition of examples."""

    of: NDArray[np.int64]
    """The cell of each example, [n]; below 0: of none."""
    names: tuple[str, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples of each cell, [K]."""
        return np.bincount(self.of[self.of >= 0], minlength=len(self.names))


def gap_unit(scores: str) -> str:
    """Of how far averages are apart, from that of the scores."""
    return DIFFERENCE_OF_SHARES if scores in ("share", "probability") else scores


class ByGroup(Statistic):
    """A number of the averages of groups, or of other cells that examples fall into."""

    by: Text | Annotated[tuple[Text, ...], Field(min_length=1)]
    """A column, or several: then every combination of their values is a group."""
    average: AverageName = "mean"
    """What is made of each group's scores."""
    floor: Annotated[int, Field(ge=1)] = 10
    """Fewest examples of a group (in each of its cells) that is compared."""
    small: Literal["refuse", "leave-out"] = "refuse"
    """What becomes of a smaller one."""

    @abstractmethod
    def combined(self, averages: Floats) -> Floats:
        """Averages of the cells [..., K], NaN where a cell is empty, to levels [...]; NaN where there are too few."""

    @abstractmethod
    def slopes(self, averages: Floats) -> Floats:
        """Derivatives of `combined` by the averages of the cells [..., K], [..., K]."""

    # --- groups

    @property
    def named(self) -> tuple[str, ...]:
        """The columns."""
        return (self.by,) if isinstance(self.by, str) else self.by

    @property
    def grouped(self) -> str:
        """How examples are grouped, in words."""
        return f"groups by {' and '.join(self.named)}"

    @property
    def columns(self) -> Mapping[str, str]:
        """Those that make the groups."""
        return dict.fromkeys(self.named, "by")

    def every_group(self, columns: Columns) -> Cells:
        """The groups, however small."""
        codes, values = [], []
        for column in self.named:
            held = pd.Categorical(columns[column])  # its values in order
            codes.append(held.codes.astype(np.int64))
            values.append([str(value) for value in held.categories])
        each = np.stack(codes, axis=1)
        known = (each >= 0).all(1)
        present, inside = np.unique(each[known], axis=0, return_inverse=True)
        of = np.full(len(each), -1)
        of[known] = inside.reshape(-1)
        names = (", ".join(v[c] for v, c in zip(values, row, strict=True)) for row in present)
        return Cells(of, tuple(names))

    def cells(self, columns: Columns) -> Cells:
        """The cells whose averages count; by default the groups."""
        return self.every_group(columns)

    def strata(self, columns: Columns) -> NDArray[np.int64]:
        """Every cell."""
        return self.cells(columns).of

    def left_out(self, columns: Columns) -> tuple[tuple[str, NDArray[np.bool_]], ...]:
        """The groups below the floor, where the spec leaves them out."""
        if self.small == "refuse":
            return ()
        groups = self.every_group(columns)
        return tuple((groups.names[g], groups.of == g) for g in self._small(columns, groups))

    def _small(self, columns: Columns, groups: Cells) -> dict[int, int]:
        """Groups with a cell below the floor, with the examples of the smallest."""
        cells = self.cells(columns)
        least: dict[int, int] = {}
        for g in range(len(groups.names)):
            inside = np.bincount(cells.of[(groups.of == g) & (cells.of >= 0)])
            sizes = [int(inside[c]) if c < len(inside) else 0 for c in self.cells_of(g, groups)]
            if sizes and min(sizes) < self.floor:
                least[g] = min(sizes)
        return least

    def cells_of(self, group: int, groups: Cells) -> tuple[int, ...]:
        """The cells that a group's examples fall into; by default the one that it is."""
        return (group,)

    def misfit(self, columns: Columns) -> Misfit | None:
        """Every example is of a group, and at least two groups are large enough."""
        if wrong := self.without_group(columns):
            return wrong
        groups = self.every_group(columns)
        small = self._small(columns, groups)
        if small and self.small == "refuse":
            told = ", ".join(f"{groups.names[g]} ({n})" for g, n in list(small.items())[:8])
            reason = f"a group has fewer than {self.floor} examples to compare: {told}"
            return Misfit("by", reason, "add examples, lower floor, or say small: leave-out")
        left = len(groups.names) - len(small)
        if left < 2:
            reason = f"{self.grouped} leave {left} to compare: {', '.join(groups.names[:8])}"
            return Misfit("by", reason, "name a column with at least two values, or a lower floor")
        return None

    def without_group(self, columns: Columns) -> Misfit | None:
        """Why examples are of no group; None where each is of one."""
        told = (missing(columns, column, "by") for column in self.named)
        return next((wrong for wrong in told if wrong), None)

    # --- metrics

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """The average must be one of such scores."""
        return AVERAGES[self.average].misread(metric)

    # --- levels

    def averages(self, scores: Floats, counts: Counts, cells: Cells) -> Floats:
        """Averages of the cells of scores [n, ...] on resamples, [R, ..., K]; NaN where a cell is empty."""
        average, values = AVERAGES[self.average], AVERAGES[self.average].g(scores)
        found = []
        for k in range(len(cells.names)):
            rows = cells.of == k
            drawn = counts[:, rows]
            total = drawn.sum(1).reshape(-1, *(1 for _ in scores.shape[1:]))
            sums = drawn @ values[rows]
            found.append(np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0))
        return average.h(np.stack(found, axis=-1))

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """`combined` of the averages."""
        once = np.ones((1, len(scores)), dtype=np.int64)
        return np.asarray(self.combined(self.averages(scores, once, self.cells(columns)))[0])

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """All resamples in a product for every cell."""
        drawn = self.combined(self.averages(scores, counts, self.cells(columns)))
        return np.where(np.isnan(drawn), self.level(scores, columns), drawn)

    def groups(self, scores: Floats, columns: Columns) -> tuple[Group, ...]:
        """Every cell with its average."""
        cells = self.cells(columns)
        (averages,) = self.averages(scores, np.ones((1, len(scores)), dtype=np.int64), cells)
        return tuple(
            Group(name, int(size), float(average))
            for name, size, average in zip(cells.names, cells.sizes, averages, strict=True)
        )

    # --- how far, and how surely

    def reach(self, columns: Columns, *scores: Floats) -> tuple[Cells, Floats]:
        """The cells, and the largest size of each one's slope at any of several scores [n, ...], [..., K]."""
        cells, once = self.cells(columns), np.ones((1, len(scores[0])), dtype=np.int64)
        steep = [np.abs(self.slopes(self.averages(s, once, cells)[0])) for s in scores]
        return cells, np.maximum.reduce(np.broadcast_arrays(*steep))

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """The larger of two: between the levels, and the sum over cells of slope times root mean square.

        No two averages of a cell are further apart than its scores in the root mean square, so that where slopes
        are 1 the second is never smaller.
        """
        apart = float(self.level(ours, columns) - self.level(theirs, columns))
        cells, steep = self.reach(columns, ours, theirs)
        squares = np.bincount(cells.of + 1, (ours - theirs) ** 2, len(cells.names) + 1)[1:]
        return max(abs(apart), float(steep @ np.sqrt(squares / np.maximum(cells.sizes, 1))))

    def half_widths(
        self,
        deployed: Floats,
        changes: Floats,
        columns: Columns,
        spreads: Floats,
        quantile: float,
        level: float,
        *,
        binary: bool,
    ) -> Floats:
        """As for means (`Mean.half_widths`), n being the size of the smallest cell that matters.

        Where scores are 0 or 1, each cell's error is at least Agresti & Min's, and the errors of the cells add up as
        those of independent examples do, each times the cell's slope.
        """
        cells, steep = self.reach(columns, deployed[:, None], deployed[:, None] - changes)
        used = steep.any(0)
        n = int(cells.sizes[used].min()) if used.any() else len(changes)
        half: Floats = student(quantile, n - 1) * spreads * np.sqrt(n / max(n - 1, 1))
        if binary:
            errors = np.stack(
                [agresti_min(changes[cells.of == k]) for k in range(len(cells.names))], axis=-1
            )
            least = np.sqrt(((steep * errors) ** 2).sum(-1))
            threes = (steep * -np.log1p(-level) / np.maximum(cells.sizes, 1)).max(-1)
            half = np.maximum(quantile * np.maximum(spreads, least), threes)
        return half

    def largest_step(self, scores: Floats, columns: Columns) -> float:
        """Of one example of each cell and score: all of them move it alike."""
        cells = self.cells(columns)
        kinds = np.where(cells.of >= 0, 2 * cells.of + (scores > 0), -1)
        _, rows = np.unique(kinds, return_index=True)
        flipped = np.repeat(scores[:, None], len(rows), axis=1)
        flipped[rows, np.arange(len(rows))] = 1 - scores[rows]
        return float(np.abs(self.level(flipped, columns) - self.level(scores, columns)).max())

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """The cell's slope times h' g'(s) / its examples."""
        cells, average = self.cells(columns), AVERAGES[self.average]
        (found,) = self.averages(scores, np.ones((1, len(scores)), dtype=np.int64), cells)
        each = self.slopes(found) * average.h_slope(found) / np.maximum(cells.sizes, 1)
        return np.where(cells.of >= 0, each[cells.of], 0.0) * average.g_slope(scores)


def widest(averages: Floats) -> Floats:
    """Largest less smallest [..., K] to [...]; NaN where fewer than two cells have examples."""
    few = np.isfinite(averages).sum(-1) < 2
    high, low = (
        np.where(np.isnan(averages), -np.inf, averages),
        np.where(np.isnan(averages), np.inf, averages),
    )
    return np.where(few, np.nan, high.max(-1) - low.min(-1))


def at_largest(averages: Floats) -> Floats:
    """1 at the largest of [..., K], 0 elsewhere; the first of equal ones."""
    place = np.where(np.isnan(averages), -np.inf, averages).argmax(-1)
    return np.asarray(np.eye(averages.shape[-1])[place])
