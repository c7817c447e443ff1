"""How large, and of which sign, the errors of predicted values are."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from auditspec.behaviors.statistics.averages import AVERAGES, Average
from auditspec.behaviors.statistics.interface import Columns, Counts, Floats, Statistic
from auditspec.spec.measures import DeclaredMetric


class OfErrors(Statistic):
    """An average of the scores of `error`, predicted less true value."""

    @property
    def average(self) -> Average:
        """The one of its name."""
        return AVERAGES[self.name]  # type: ignore[index]  # each is named after it

    @property
    def words(self) -> str:
        """Of the average."""
        return self.average.words

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Errors of predicted values alone are averaged so."""
        return self.average.misread(metric)

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Of the average."""
        return self.average.bounds(least, most)

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """h(mean of g(scores))."""
        return self.average.h(np.asarray(self.average.g(scores).mean(0)))

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """All resamples in one product; those without an example are as the examples are."""
        counts = np.where(counts.any(1, keepdims=True), counts, 1)
        total = counts.sum(1).reshape(-1, *(1 for _ in scores.shape[1:]))
        return self.average.h(counts @ self.average.g(scores) / total)

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """Root mean square over examples: no two averages are further apart than their scores."""
        return float(np.sqrt(np.mean((ours - theirs) ** 2)))

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """H' g'(s) / n."""
        slope = self.average.h_slope(self.level(scores, columns))
        return slope * self.average.g_slope(scores) / len(scores)


@final
class Mae(OfErrors):
    """Mean absolute error."""

    name: Literal["mae"]


@final
class Rmse(OfErrors):
    """Root mean square error."""

    name: Literal["rmse"]


@final
class Bias(OfErrors):
    """Mean error: above 0 where predictions are too high."""

    name: Literal["bias"]
    linear: ClassVar[bool] = True
