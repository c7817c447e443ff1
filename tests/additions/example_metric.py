"""Entropy of the predicted distribution."""

from math import log
from typing import ClassVar, Literal

from torch import Tensor

from auditspec.behaviors.metrics import Metric, Outputs


class Entropy(Metric):
    """- sum of p ln p over the classes."""

    name: Literal["entropy"]
    words: ClassVar[str] = "entropy of the predicted distribution"
    unit: ClassVar[str] = "nats"
    of_classes: ClassVar[bool] = True

    def scores(self, outputs: Outputs) -> Tensor:
        p = outputs.predict(outputs.model, outputs.batch).softmax(1)
        return -(p * p.log()).sum(1)

    def uninformed(self, classes: int) -> float:
        return log(classes)
