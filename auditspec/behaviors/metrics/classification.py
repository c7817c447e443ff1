"""Metrics of classifiers: from the model's logits and the true classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, final

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.errors import EstimationError
from auditspec.spec.models import Class

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


class ClassMetric(Metric):
    """A metric of logits [B, C]."""

    of_classes: ClassVar[bool] = True

    @abstractmethod
    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits [B, C] and true classes, [B] or empty, to scores [B]."""

    def scores(self, outputs: Outputs) -> Tensor:
        """Score a batch.

        Raises:
            EstimationError: if the logits have another shape, lack a class, or hold NaN (which the
                most likely class would hide).
        """
        logits, labels = outputs.predict(outputs.model, outputs.batch), outputs.labels
        if logits.dim() != 2:
            raise EstimationError(
                f"predict gave a tensor of shape {tuple(logits.shape)}",
                "return logits of shape [batch, classes]",
            )
        if bool(logits.isnan().any()):
            raise EstimationError(
                "predict gave NaN",
                "check the model's inputs, and whether a counterfactual diverged",
            )
        needed = max((*self.named_classes.values(), int(labels.max()) if labels.numel() else 0))
        if needed >= logits.shape[1]:
            raise EstimationError(
                f"class {needed} is asked for; the model has classes 0 to {logits.shape[1] - 1}",
                "correct the metric's class, or the label column",
            )
        return self.of_logits(logits, labels)


@final
class Nll(ClassMetric):
    """Negative log-likelihood of the true class, in nats."""

    name: Literal["nll"]
    words: ClassVar[str] = "negative log-likelihood of the true class"
    unit: ClassVar[str] = "nats"
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)
    labelled: ClassVar[bool] = True

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """-log p(true class)."""
        from torch.nn import functional as F

        return F.cross_entropy(logits, labels, reduction="none")

    def uninformed(self, classes: int) -> float:
        """Logarithm of k."""
        return float(np.log(classes))


@final
class Accuracy(ClassMetric):
    """Share of examples whose most likely class is the true one."""

    name: Literal["accuracy"]
    words: ClassVar[str] = "share of examples classified correctly"
    unit: ClassVar[str] = "share"
    binary: ClassVar[bool] = True
    labelled: ClassVar[bool] = True

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 where the most likely class is the true one."""
        return (logits.argmax(1) == labels).to(logits.dtype)

    def uninformed(self, classes: int) -> float:
        """1 / k."""
        return 1 / classes


@final
class Probability(ClassMetric):
    """Probability of a class; of the true class where none is named."""

    name: Literal["probability"]
    class_: Class | None = Field(default=None, alias="class")
    unit: ClassVar[str] = "probability"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def words(self) -> str:
        """Names the class."""
        named = "the true class" if self.class_ is None else f"class {self.class_}"
        return f"probability of {named}"

    @property
    def labelled(self) -> bool:
        """Where it names no class."""
        return self.class_ is None

    @property
    def named_classes(self) -> Mapping[str, int]:
        """The one that it names."""
        return {} if self.class_ is None else {"class": self.class_}

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Softmax of the class's logit."""
        if self.class_ is not None:
            return logits.softmax(1)[:, self.class_]
        return logits.softmax(1).gather(1, labels[:, None])[:, 0]

    def uninformed(self, classes: int) -> float:
        """1 / k."""
        return 1 / classes


@final
class LogitMargin(ClassMetric):
    """Logit of one class minus logit of another."""

    name: Literal["logit-margin"]
    positive: Class
    negative: Class
    unit: ClassVar[str] = "logits"

    @model_validator(mode="after")
    def _differ(self) -> LogitMargin:
        if self.positive == self.negative:
            raise PydanticCustomError("AS022", "positive and negative name the same class")
        return self

    @property
    def words(self) -> str:
        """Names both classes."""
        return f"logit of class {self.positive} minus logit of class {self.negative}"

    @property
    def named_classes(self) -> Mapping[str, int]:
        """Both."""
        return {"positive": self.positive, "negative": self.negative}

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Their difference."""
        return logits[:, self.positive] - logits[:, self.negative]

    def uninformed(self, classes: int) -> float:
        """0."""
        return 0.0


@final
class Rate(ClassMetric):
    """Share of examples for which a class is the most likely one."""

    name: Literal["rate"]
    class_: Class = Field(alias="class")
    unit: ClassVar[str] = "share"
    binary: ClassVar[bool] = True

    @property
    def words(self) -> str:
        """Names the class."""
        return f"share of examples classified as {self.class_}"

    @property
    def named_classes(self) -> Mapping[str, int]:
        """The one that it names."""
        return {"class": self.class_}

    def of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 where the class is the most likely one."""
        return (logits.argmax(1) == self.class_).to(logits.dtype)

    def uninformed(self, classes: int) -> float:
        """1 / k."""
        return 1 / classes
