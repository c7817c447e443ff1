"""Whether a language model memorised a secret."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, final

from auditspec.behaviors.metrics.interface import Outputs
from auditspec.behaviors.metrics.sequences import (
    Example,
    Row,
    SequenceMetric,
    by_example,
    every,
    log_probabilities,
)
from auditspec.results import Text

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@final
class Exposure(SequenceMetric):
    """Exposure of a canary: log2 |R| - log2 rank, its rank by log-probability among all |R| texts of its form that it
    might have been (Carlini et al. 2019, The Secret Sharer); one that is as likely ranks before it.

    The texts are its references and itself, so that 0 is the least likely of them, and log2 |R| the most.
    """

    name: Literal["exposure"]
    text: Text
    """Column of the canaries."""
    references: Text
    """Column that holds a list in each row: texts of the same form, of which no model was told."""
    prompt: Text | None = None
    words: ClassVar[str] = (
        "exposure: log2 of the number of candidates less log2 of the canary's rank among them"
    )
    unit: ClassVar[str] = "bits"
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)
    differentiable: ClassVar[bool] = False

    @property
    def columns(self) -> Mapping[str, str]:
        """The canary, its references, and what stands before all of them."""
        read = {self.text: "text", self.references: "references"}
        return read | ({} if self.prompt is None else {self.prompt: "prompt"})

    def example(self, row: Row) -> Example:
        """The canary, then its references."""
        canary = row.sequence(self.prompt, self.text)
        others = (
            row.sequence(self.prompt, self.references, value)
            for value in row.several(self.references)
        )
        return Example(row.number, (canary, *others))

    def scores(self, outputs: Outputs) -> Tensor:
        """Log2 |R| - log2 (1 + number of references that are at least as likely)."""
        import torch

        each = by_example(log_probabilities(outputs, every(outputs.batch)), outputs.batch)
        found = [(len(p), 1 + int((p[1:] >= p[0]).sum())) for p in each]
        sizes, ranks = torch.tensor(found, dtype=torch.float64, device=each[0].device).unbind(1)
        return sizes.log2() - ranks.log2()
