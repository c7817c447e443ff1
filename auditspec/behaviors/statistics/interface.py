"""What every statistic is: one number of a model's scores on a slice.

An effect is statistic(deployed) - statistic(counterfactual). Whatever asks how large or how sure one is asks
the statistic: its bootstrap, its standard error, the distance between two estimates of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from auditspec.spec.measures import DeclaredStatistic

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]
"""How often each resample drew each example, [R, n]."""
Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Columns of the evaluation table that a statistic reads beside the scores, by name, [n] each."""
PARTS = 10
"""Parts of a slice on which two estimates of a statistic are compared."""
DRAWS = 200
"""Resamples for the standard error of a statistic that has no formula for it."""
FLIPS = 100
"""Most examples that are scored otherwise to see how far one of them moves a statistic."""


@dataclass(frozen=True)
class Misfit:
    """Why a statistic is not defined on a slice, and what to do."""

    option: str
    """That names the column, or the value."""
    reason: str
    remedy: str


@dataclass(frozen=True)
class Group:
    """One of the groups that a statistic compares."""

    name: str
    examples: int
    level: float


class Statistic(DeclaredStatistic):
    """A statistic: a class whose fields are its options in a spec. Only `level` must be its own."""

    @property
    def linear(self) -> bool:
        """Whether it is a weighted sum of the scores, the weights being those of the examples: then the statistic
        of a change of the scores is the change of the statistic.
        """
        return False

    @abstractmethod
    def level(self, scores: Floats, columns: Columns) -> Floats:
        """Scores [n, ...] to levels [...]; NaN where the examples leave it undefined.

        The order of the examples must not matter.
        """

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """The levels [R, ...] of scores [n, ...] on resamples of the examples.

        That of a resample that leaves it undefined, or has no example, is the level of the examples themselves.
        """
        whole, draws = self.level(scores, columns), []
        for drawn in counts:
            rows = np.repeat(np.arange(len(scores)), drawn)
            level = self.level(scores[rows], _at(columns, rows)) if len(rows) else whole
            draws.append(np.where(np.isnan(level), whole, level))
        return np.stack(draws)

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """How far two estimates of one model's scores [n] are apart, in the statistic's unit.

        Two estimates may agree by chance on all examples taken together, so it is the larger of two: their
        distance there, and its root mean square over tenths of the examples.
        """
        parts = [slice(start, None, PARTS) for start in range(min(PARTS, len(ours)))]
        here, *apart = (
            float(self.level(ours[p], _at(columns, p)) - self.level(theirs[p], _at(columns, p)))
            for p in (slice(None), *parts)
        )
        defined = [d for d in apart if np.isfinite(d)]
        return max(abs(here), float(np.sqrt(np.mean(np.square(defined)))) if defined else 0.0)

    def standard_error(self, changes: Floats, columns: Columns) -> float | None:
        """Standard error of an effect, from the change of each score [n]; None: by the bootstrap."""
        return None

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
        """Half-widths [S] of the intervals of S effects.

        Args:
            deployed: the deployed model's scores, [n].
            changes: of each example's score, [n, S].
            columns: beside the scores.
            spreads: bootstrap standard errors of the effects, [S].
            quantile: of the largest deviation in standard errors, as if these were known.
            level: of the intervals.
            binary: whether scores are 0 or 1.
        """
        return student(quantile, len(changes) - 1) * spreads

    def largest_step(self, scores: Floats, columns: Columns) -> float:
        """How far one example moves the statistic at most, where scores [n] are 0 or 1."""
        rows = np.linspace(0, len(scores) - 1, min(FLIPS, len(scores))).round().astype(np.int64)
        flipped = np.repeat(scores[:, None], len(rows), axis=1)
        flipped[rows, np.arange(len(rows))] = 1 - scores[rows]
        return float(np.abs(self.level(flipped, columns) - self.level(scores, columns)).max())

    def weights(self, scores: Floats, columns: Columns) -> Floats | None:
        """Its derivatives by the score of each example, at scores [n], [n]; None where it states none."""
        return None

    def misfit(self, columns: Columns) -> Misfit | None:
        """Why it is not defined on the examples whose columns these are, whatever they score; None where it is."""
        return None

    def strata(self, columns: Columns) -> NDArray[np.int64]:
        """Of which part each example is that no selection of examples may lack, [n] from 0; below 0: of none that counts."""
        return np.zeros(len(next(iter(columns.values()), ())), dtype=np.int64)

    def groups(self, scores: Floats, columns: Columns) -> tuple[Group, ...]:
        """The groups that it compares, with their levels at scores [n]; none where it compares none."""
        return ()

    def left_out(self, columns: Columns) -> tuple[tuple[str, NDArray[np.bool_]], ...]:
        """Groups that it does not count, each with a mask of its examples [n]."""
        return ()


@dataclass(frozen=True)
class SliceStatistic:
    """A statistic on the examples of one slice."""

    statistic: Statistic
    columns: Columns

    def at(self, rows: NDArray[np.int64]) -> SliceStatistic:
        """The same on some of the examples."""
        return SliceStatistic(self.statistic, _at(self.columns, rows))

    def level(self, scores: Floats) -> float:
        """Of scores [n]."""
        return float(self.statistic.level(scores, self.columns))

    def effect(self, deployed: Floats, change: Floats) -> float:
        """Of what changed the deployed model's scores [n] by `change` [n]: the level with it less that without."""
        return float(self.effects(deployed, change))

    def effects(self, deployed: Floats, changes: Floats) -> Floats:
        """The same of several changes [n, S] at once, [S]."""
        if self.statistic.linear:
            return self.statistic.level(changes, self.columns)
        without = _beside(deployed, changes) - changes
        return self.level(deployed) - self.statistic.level(without, self.columns)

    def weights(self, scores: Floats) -> Floats | None:
        """Derivatives of the level by the score of each example [n]; None where the statistic states none."""
        return self.statistic.weights(scores, self.columns)

    def groups(self, scores: Floats) -> tuple[Group, ...]:
        """The groups that are compared, with their levels at scores [n]."""
        return self.statistic.groups(scores, self.columns)

    def spread_rows(self, examples: int, most: int) -> NDArray[np.int64]:
        """At most so many of the examples, evenly spread over every part that the statistic needs, and one of each at least."""
        strata = self.statistic.strata(self.columns) if self.columns else np.zeros(examples, int)
        order = np.argsort(strata, kind="stable")
        evenly = np.linspace(0, examples - 1, min(most, examples)).round().astype(np.int64)
        _, first = np.unique(strata, return_index=True)
        return np.unique(np.concatenate([order[evenly], first])).astype(np.int64)

    def resampled(self, scores: Floats, counts: Counts) -> Floats:
        """Levels [R] of scores [n] on resamples."""
        return self.statistic.resampled(scores, counts, self.columns)

    def resampled_effects(self, deployed: Floats, changes: Floats, counts: Counts) -> Floats:
        """Effects [R, S] of changes [n, S] on resamples."""
        if self.statistic.linear:
            return self.statistic.resampled(changes, counts, self.columns)
        without = _beside(deployed, changes) - changes
        before, after = (
            self.statistic.resampled(scores, counts, self.columns) for scores in (without, deployed)
        )
        return after[:, None] - before

    def distance(self, ours: Floats, theirs: Floats) -> float:
        """How far two estimates of one model's scores [n] are apart, in the statistic's unit."""
        return self.statistic.distance(ours, theirs, self.columns)

    def effect_distance(self, deployed: Floats, ours: Floats, theirs: Floats) -> float:
        """How far two estimates of one change [n] of the deployed model's scores are apart."""
        if self.statistic.linear:
            return self.distance(ours, theirs)
        return self.distance(deployed - ours, deployed - theirs)

    def size(self, deployed: Floats, change: Floats) -> float:
        """How far a change [n] is from none."""
        return self.effect_distance(deployed, change, np.zeros_like(change))

    def half_widths(
        self,
        deployed: Floats,
        changes: Floats,
        spreads: Floats,
        quantile: float,
        level: float,
        *,
        binary: bool,
    ) -> Floats:
        """Half-widths [S] of the intervals of the effects of changes [n, S]; see `Statistic.half_widths`."""
        return self.statistic.half_widths(
            deployed, changes, self.columns, spreads, quantile, level, binary=binary
        )

    def largest_step(self, scores: Floats) -> float:
        """How far one example moves the level at most, where scores [n] are 0 or 1."""
        return self.statistic.largest_step(scores, self.columns)

    def standard_error(self, deployed: Floats, change: Floats) -> float:
        """Of an effect, over evaluation examples."""
        stated = self.statistic.standard_error(change, self.columns)
        if stated is not None:
            return stated
        n = len(change)
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        return float(self.resampled_effects(deployed, change[:, None], counts).std())


def _at(columns: Columns, rows: NDArray[np.int64] | slice) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def _beside(scores: Floats, changes: Floats) -> Floats:
    """Scores [n] in a shape that changes [n, ...] are subtracted from."""
    return scores.reshape(-1, *(1 for _ in changes.shape[1:]))


def student(z: float, freedom: int) -> float:
    """The quantile of Student's t at the level at which z is the normal's (Fisher & Cornish 1960).

    Off by less than 0.5 % from 9 degrees of freedom on, up to z = 3.5; below 2 it is taken at 2.
    """
    v = max(freedom, 2)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
