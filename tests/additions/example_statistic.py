"""The 0.9 quantile."""

from typing import ClassVar, Literal

import numpy as np

from auditspec.behaviors.statistics import Columns, Floats, Statistic


class UpperDecile(Statistic):
    """What a tenth of the examples exceed."""

    name: Literal["upper-decile"]
    words: ClassVar[str] = "0.9 quantile"

    def level(self, scores: Floats, columns: Columns) -> Floats:
        return np.asarray(np.quantile(scores, 0.9, axis=0))
