"""Whether predicted probabilities are the shares that come true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from auditspec.behaviors.statistics.interface import Columns, Counts, Floats, Misfit, Statistic
from auditspec.behaviors.statistics.truth import Value, is_value, misfit_of, other_class
from auditspec.results import Text
from auditspec.spec.measures import DeclaredMetric


@final
class Ece(Statistic):
    """Expected calibration error of one class's probability (Naeini, Cooper & Hauskrecht 2015).

    sum over bins b of |sum over i in b of (p_i - y_i)| / n, with bins (j / B, (j + 1) / B] of the probability p, the
    first from 0, and y = 1 where the column `truth` is `positive`.
    """

    name: Literal["ece"]
    truth: Text
    positive: Value = 1
    bins: Annotated[int, Field(ge=1, le=1000)] = 10

    @property
    def words(self) -> str:
        """With its bins and the truth."""
        return f"expected calibration error in {self.bins} bins, {self.truth} {self.positive} being true"

    @property
    def columns(self) -> Mapping[str, str]:
        """The truth."""
        return {self.truth: "truth"}

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Scores must be probabilities of the positive class."""
        if metric.binary or metric.bounds != (0.0, 1.0):
            return f"scores of {metric.name!r} are no probabilities"
        if metric.labelled:
            return "a probability of the true class has no calibration: name the class"
        return other_class(metric, self.positive)

    def misfit(self, columns: Columns) -> Misfit | None:
        """Some examples are positive, and some are not."""
        return misfit_of(columns, self.truth, self.positive)

    def unit(self, scores: str) -> str:
        """Of probabilities."""
        return "probability"

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """0 to 1."""
        return 0.0, 1.0

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """Of scores [n, ...]."""
        once = np.ones((1, len(scores)), dtype=np.int64)
        return np.asarray(self.resampled(scores, once, columns)[0])

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """A product for every bin; a resample without an example is as the examples are."""
        counts = np.where(counts.any(1, keepdims=True), counts, 1)
        flat = scores.reshape(len(scores), -1)
        off = flat - is_value(columns[self.truth], self.positive)[:, None]
        levels = np.zeros((len(counts), flat.shape[1]))
        for s in range(flat.shape[1]):
            bins = self._bins(flat[:, s])
            for b in np.unique(bins):
                rows = bins == b
                levels[:, s] += np.abs(counts[:, rows] @ off[rows, s])
        shape = (len(counts), *scores.shape[1:])
        return np.asarray(levels / counts.sum(1, keepdims=True)).reshape(shape)

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """The larger of two: between the levels, and root mean square over examples."""
        apart = float(self.level(ours, columns) - self.level(theirs, columns))
        return max(abs(apart), float(np.sqrt(np.mean((ours - theirs) ** 2))))

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
        """As of any statistic, and beside it the most by which chance raises either model's level.

        The size of a bin's error is at least 0, so that noise of standard error s adds up to s sqrt(2 / pi) to it (the
        mean of a folded normal) where it is within 3 s of 0; elsewhere next to nothing.
        """
        half = super().half_widths(
            deployed, changes, columns, spreads, quantile, level, binary=binary
        )
        without = [self._raised(scores, columns) for scores in (deployed[:, None] - changes).T]
        return half + np.maximum(without, self._raised(deployed, columns))

    def _raised(self, scores: Floats, columns: Columns) -> float:
        """How far chance raises the level of scores [n] at most."""
        off, bins = scores - is_value(columns[self.truth], self.positive), self._bins(scores)
        sums = np.abs(np.bincount(bins, off, self.bins))
        errors = np.sqrt(np.bincount(bins, off**2, self.bins))
        return float(errors[sums <= 3 * errors].sum() * np.sqrt(2 / np.pi) / len(scores))

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """The sign of its bin's error / n: no score changes its bin."""
        off, bins = scores - is_value(columns[self.truth], self.positive), self._bins(scores)
        signs: Floats = np.sign(np.bincount(bins, off, self.bins))
        return signs[bins] / len(scores)

    def _bins(self, scores: Floats) -> NDArray[np.int64]:
        return np.searchsorted(np.linspace(0, 1, self.bins + 1)[1:-1], scores)
