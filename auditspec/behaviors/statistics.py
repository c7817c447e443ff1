"""Statistics: one number of a model's scores on a slice. Each is one class; its fields are its options in a spec.

An effect is statistic(deployed) - statistic(counterfactual). Whatever asks how large or how sure one is asks
the statistic: its bootstrap, its standard error, the distance between two estimates of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from auditspec.plugins import available
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


class Statistic(DeclaredStatistic):
    """A statistic: a class whose fields are its options in a spec. Only `level` must be its own."""

    linear: ClassVar[bool] = False
    """Whether it is a weighted sum of the scores, the weights being those of the examples: then the statistic
    of a change of the scores is the change of the statistic."""

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

    def weights(self, examples: int, columns: Columns) -> Floats | None:
        """Its derivatives by the score of each example [n], where they do not depend on the scores; else None."""
        return None


@final
class Mean(Statistic):
    """Mean over the examples."""

    name: Literal["mean"]
    words: ClassVar[str] = "mean"
    linear: ClassVar[bool] = True

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Those of the scores."""
        return least, most

    def uninformed(self, score: float) -> float:
        """The expected score."""
        return score

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """The mean."""
        level: Floats = np.asarray(scores.mean(0))
        return level

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """All resamples in one product; 0 where a resample has no example."""
        total = np.maximum(counts.sum(1, keepdims=True), 1)
        resampled: Floats = counts / total @ scores if scores.ndim == 1 else counts @ scores / total
        return resampled

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """Root mean square over examples: no two means are further apart than their scores."""
        return float(np.sqrt(np.mean((ours - theirs) ** 2)))

    def standard_error(self, changes: Floats, columns: Columns) -> float:
        """Sample standard deviation / sqrt(n); 0 for a single example."""
        n = len(changes)
        return float(changes.std(ddof=1)) / float(np.sqrt(n)) if n > 1 else 0.0

    def half_widths(
        self,
        changes: Floats,
        columns: Columns,
        spreads: Floats,
        quantile: float,
        level: float,
        *,
        binary: bool,
    ) -> Floats:
        """Student's t in place of the normal, since the error is estimated from n examples.

        Where scores are 0 or 1, the error is instead at least the one after adding half an example to each
        cell of the paired table (Agresti & Min 2005), and the half-width at least -ln(1 - level) / n, the
        rule of three, so that "no example changed" does not mean "no doubt".
        """
        n = len(changes)
        half: Floats = student(quantile, n - 1) * spreads * np.sqrt(n / max(n - 1, 1))
        if binary:
            rule_of_three = -np.log1p(-level) / n
            half = np.maximum(quantile * np.maximum(spreads, agresti_min(changes)), rule_of_three)
        return half

    def largest_step(self, scores: Floats, columns: Columns) -> float:
        """1 / n."""
        return 1 / len(scores)

    def weights(self, examples: int, columns: Columns) -> Floats:
        """1 / n."""
        return np.full(examples, 1 / examples)


STATISTICS: tuple[type[Statistic], ...] = (Mean,)
"""The built-in ones."""


def classes() -> dict[str, type[Statistic]]:
    """Every statistic that a spec may name, those of plug-ins too.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    return available("statistics", STATISTICS, Statistic)  # type: ignore[type-abstract]


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

    def weights(self, examples: int) -> Floats | None:
        """Derivatives of the level by the score of each example [n]; None where they depend on the scores."""
        return self.statistic.weights(examples, self.columns)

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
        self, changes: Floats, spreads: Floats, quantile: float, level: float, *, binary: bool
    ) -> Floats:
        """Half-widths [S] of the intervals of the effects of changes [n, S]; see `Statistic.half_widths`."""
        return self.statistic.half_widths(
            changes, self.columns, spreads, quantile, level, binary=binary
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


def agresti_min(changes: Floats) -> Floats:
    """Standard error of a difference of paired shares, half an example added to each cell.

    Args:
        changes: differences of 0/1 scores, [n, S].
    """
    n = len(changes) + 2
    up = ((changes > 0).sum(0) + 0.5) / n
    down = ((changes < 0).sum(0) + 0.5) / n
    variance: Floats = (up + down - (up - down) ** 2) / n
    return np.sqrt(variance)


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
