"""The mean, and what is known of the error of paired shares."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from auditspec.behaviors.statistics.interface import Columns, Counts, Floats, Statistic, student


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
        deployed: Floats,
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

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """1 / n."""
        return np.full(len(scores), 1 / len(scores))


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
