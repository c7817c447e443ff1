"""What a share of the examples stays below."""

from __future__ import annotations

from typing import Annotated, Literal, final

import numpy as np
from pydantic import Field

from auditspec.behaviors.statistics.interface import Columns, Floats, Statistic
from auditspec.spec.measures import DeclaredMetric


@final
class Quantile(Statistic):
    """The q quantile of the scores: between two of them, in proportion (Hyndman & Fan 1996, type 7)."""

    name: Literal["quantile"]
    q: Annotated[float, Field(gt=0, lt=1)]

    @property
    def words(self) -> str:
        """Names the share."""
        return "median" if self.q == 0.5 else f"{self.q:g} quantile"

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Scores of two values have no quantile between them."""
        return f"every score of {metric.name!r} is 0 or 1" if metric.binary else ""

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Those of the scores."""
        return least, most

    def uninformed(self, score: float) -> float | None:
        """Unknown: scores of a model that knows nothing need not be alike."""
        return None

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """The quantile."""
        level: Floats = np.asarray(np.quantile(scores, self.q, axis=0))
        return level

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """Those of the two scores beside it; 0 elsewhere."""
        order, place = np.argsort(scores, kind="stable"), self.q * (len(scores) - 1)
        below, above = int(np.floor(place)), int(np.ceil(place))
        weights = np.zeros(len(scores))
        weights[order[above]] = place - below
        weights[order[below]] += 1 - (place - below)
        return weights
