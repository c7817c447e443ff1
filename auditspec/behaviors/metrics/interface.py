"""What every metric is: one number per evaluation example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from auditspec.spec.measures import DeclaredMetric, OutputKind

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor, nn

    from auditspec.artifacts.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """How a model is asked, as the spec declares it."""

    kind: OutputKind = "logits"
    """What its `predict` gives."""
    tokenizer: Tokenizer | None = None
    """Of its texts; None where it reads none."""


AS_LOGITS = Asked()


@dataclass(frozen=True)
class Outputs:
    """A batch of evaluation examples, and how a model in eval mode is asked about it."""

    model: nn.Module
    batch: Any
    """As the training code's `load_batch` gives it; of a metric of sequences, its `examples`."""
    labels: Tensor
    """True classes [B], or true values where the metric reads values; empty where it needs none."""
    predict: Callable[[nn.Module, Any], Tensor]
    """The training code's (model, batch) -> outputs; it is asked once for all metrics of the same examples."""
    functions: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """Functions of the code artifact, by entry point."""
    asked: Asked = AS_LOGITS
    """What `predict` gives is of a kind that the metric reads."""
    batch_size: int = 256
    """Sequences a forward pass, of a metric of sequences."""
    chance: int = 0
    """Which scoring of the model it is: a metric with random numbers of its own draws others in another."""


class Metric(DeclaredMetric):
    """A metric: a class whose fields are its options in a spec, and whose scores are its own."""

    @abstractmethod
    def scores(self, outputs: Outputs) -> Tensor:
        """One number per example [B], of one example each: no metric looks at an example's neighbours.

        Raises:
            EstimationError: if the outputs are not what the metric reads.
        """
