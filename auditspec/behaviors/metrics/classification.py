"""Metrics of classifiers: from what the model says of the classes, and the true ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, final

import numpy as np
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.errors import EstimationError
from auditspec.spec.measures import OF_CLASSES, OutputKind
from auditspec.spec.models import Class

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class Predicted:
    """What a model says of the classes, [B, C]: z where they are logits, else log p or p."""

    outputs: Tensor
    kind: OutputKind

    @property
    def log_probabilities(self) -> Tensor:
        """Log p = z - log sum exp z."""
        match self.kind:
            case "logits":
                return self.outputs.log_softmax(1)
            case "probabilities":
                return self.outputs.log()
            case _:
                return self.outputs

    @property
    def probabilities(self) -> Tensor:
        """P = exp z / sum exp z."""
        match self.kind:
            case "logits":
                return self.outputs.softmax(1)
            case "probabilities":
                return self.outputs
            case _:
                return self.outputs.exp()

    @property
    def scale(self) -> Tensor:
        """Logits but for what is the same for all classes of an example; differences of classes are log odds."""
        return self.outputs.log() if self.kind == "probabilities" else self.outputs

    @property
    def likeliest(self) -> Tensor:
        """The most likely class, [B]."""
        return self.outputs.argmax(1)


class ClassMetric(Metric):
    """A metric of what a model says of the classes, [B, C]."""

    of_classes: ClassVar[bool] = True
    reads: ClassVar[tuple[OutputKind, ...]] = OF_CLASSES

    @abstractmethod
    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """What is said of [B, C] and true classes, [B] or empty, to scores [B]."""

    def scores(self, outputs: Outputs) -> Tensor:
        """Score a batch.

        Raises:
            EstimationError: if the outputs have another shape, lack a class, or hold NaN (which the
                most likely class would hide).
        """
        given, labels = outputs.predict(outputs.model, outputs.batch), outputs.labels
        if given.dim() != 2:
            raise EstimationError(
                f"predict gave a tensor of shape {tuple(given.shape)}",
                f"return {outputs.asked.kind} of shape [batch, classes]",
            )
        if bool(given.isnan().any()):
            raise EstimationError(
                "predict gave NaN",
                "check the model's inputs, and whether a counterfactual diverged",
            )
        needed = max((*self.named_classes.values(), int(labels.max()) if labels.numel() else 0))
        if needed >= given.shape[1]:
            raise EstimationError(
                f"class {needed} is asked for; the model has classes 0 to {given.shape[1] - 1}",
                "correct the metric's class, or the label column",
            )
        return self.of_said(Predicted(given, outputs.asked.kind), labels)


@final
class Nll(ClassMetric):
    """Negative log-likelihood of the true class, in nats."""

    name: Literal["nll"]
    words: ClassVar[str] = "negative log-likelihood of the true class"
    unit: ClassVar[str] = "nats"
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)
    labelled: ClassVar[bool] = True

    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """-log p(true class)."""
        from torch.nn import functional as F

        return F.nll_loss(said.log_probabilities, labels, reduction="none")

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

    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """1 where the most likely class is the true one."""
        return (said.likeliest == labels).to(said.outputs.dtype)

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

    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """That of the class."""
        if self.class_ is not None:
            return said.probabilities[:, self.class_]
        return said.probabilities.gather(1, labels[:, None])[:, 0]

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
    counted_by: ClassVar[str] = "rate"

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

    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """Their difference, log p(positive) - log p(negative)."""
        return said.scale[:, self.positive] - said.scale[:, self.negative]

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

    def of_said(self, said: Predicted, labels: Tensor) -> Tensor:
        """1 where the class is the most likely one."""
        return (said.likeliest == self.class_).to(said.outputs.dtype)

    def uninformed(self, classes: int) -> float:
        """1 / k."""
        return 1 / classes
