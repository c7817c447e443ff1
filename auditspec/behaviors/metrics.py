"""Metrics: one number per evaluation example, from the model's logits and the true classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from auditspec.errors import EstimationError
from auditspec.spec import models as spec

Score = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, C], true classes [B] or empty) -> [B]"""


@dataclass(frozen=True)
class Metric:
    """A metric and what may be done with it."""

    score: Score
    binary: bool = False
    """Every example scores 0 or 1, so that its mean is a share."""
    differentiable: bool = True
    classes: tuple[int, ...] = ()
    """Classes that the logits must have."""
    labelled: bool = False
    """The score needs the true classes."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Score a batch.

        Raises:
            EstimationError: if the logits have another shape, lack a class, or hold NaN (which the
                most likely class would hide).
        """
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
        needed = max((*self.classes, int(labels.max()) if labels.numel() else 0))
        if needed >= logits.shape[1]:
            raise EstimationError(
                f"class {needed} is asked for; the model has classes 0 to {logits.shape[1] - 1}",
                "correct the metric's class, or the label column",
            )
        return self.score(logits, labels)


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).to(logits.dtype)


def _true_class_probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels[:, None])[:, 0]


def metric_of(metric: spec.Metric) -> Metric | None:
    """The metric that a spec names; None for a custom entry point, which scores by itself."""
    match metric:
        case spec.Nll():
            return Metric(_nll, labelled=True)
        case spec.Accuracy():
            return Metric(_accuracy, binary=True, differentiable=False, labelled=True)
        case spec.Probability(class_=None):
            return Metric(_true_class_probability, labelled=True)
        case spec.Probability(class_=int(c)):
            return Metric(lambda logits, _: logits.softmax(1)[:, c], classes=(c,))
        case spec.LogitMargin(positive=p, negative=n):
            return Metric(lambda logits, _: logits[:, p] - logits[:, n], classes=(p, n))
        case spec.Rate(class_=c):
            return Metric(
                lambda logits, _: (logits.argmax(1) == c).to(logits.dtype),
                binary=True,
                differentiable=False,
                classes=(c,),
            )
        case _:
            return None
