"""What every metric is: one number per evaluation example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from auditspec.spec.measures import DeclaredMetric, OutputKind

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """A batch of evaluation examples, and how a model in eval mode is asked about it."""

    model: nn.Module
    batch: Any
    """As the training code's `load_batch` gives it."""
    labels: Tensor
    """True classes [B], or true values where the metric reads values; empty where it needs none."""
    predict: Callable[[nn.Module, Any], Tensor]
    """The training code's (model, batch) -> outputs; it is asked once for all metrics of the same examples."""
    functions: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """Functions of the code artifact, by entry point."""
    kind: OutputKind = "logits"
    """What `predict` gives; one of those that the metric reads."""


class Metric(DeclaredMetric):
    """A metric: a class whose fields are its options in a spec, and whose scores are its own."""

    @abstractmethod
    def scores(self, outputs: Outputs) -> Tensor:
        """One number per example [B], of one example each: no metric looks at an example's neighbours.

        Raises:
            EstimationError: if the outputs are not what the metric reads.
        """
