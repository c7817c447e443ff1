"""Metrics of how likely a language model finds texts."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, ClassVar, Literal, final

from auditspec.behaviors.metrics.interface import Outputs
from auditspec.behaviors.metrics.sequences import (
    Example,
    Row,
    SequenceMetric,
    Share,
    every,
    log_probabilities,
    shares,
)
from auditspec.results import Text

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


def divided(unit: str, share: Share) -> str:
    """A unit over what scores are divided by."""
    return unit if share == "none" else f"{unit} per {share.removesuffix('s')}"


@final
class SequenceNll(SequenceMetric):
    """Negative log-likelihood of a text: -sum of log p(token | all before it), or its mean over the tokens, in nats."""

    name: Literal["sequence-nll"]
    text: Text
    """Column of the texts, or of lists of token ids."""
    prompt: Text | None = None
    """Column of what stands before them and is not scored."""
    per: Literal["sequence", "token"] = "sequence"
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)

    @property
    def words(self) -> str:
        """Names the column."""
        return f"negative log-likelihood of {self.text}, a {self.per}"

    @property
    def unit(self) -> str:
        """Nats."""
        return divided("nats", "tokens" if self.per == "token" else "none")

    @property
    def columns(self) -> Mapping[str, str]:
        """The text, and what stands before it."""
        return {self.text: "text"} | ({} if self.prompt is None else {self.prompt: "prompt"})

    @property
    def counts_tokens(self) -> bool:
        """Where it is a sum."""
        return self.per == "sequence"

    def example(self, row: Row) -> Example:
        """The text after its prompt."""
        return Example(row.number, (row.sequence(self.prompt, self.text),))

    def scores(self, outputs: Outputs) -> Tensor:
        """-log p of each text, over its tokens where they are the unit."""
        found = log_probabilities(outputs, every(outputs.batch))
        return -shares(found, outputs.batch, "tokens" if self.per == "token" else "none")


@final
class CompletionLogprob(SequenceMetric):
    """Log-probability of a completion after its prompt, in nats; over its tokens or characters where they are named."""

    name: Literal["completion-logprob"]
    prompt: Text
    completion: Text
    normalize: Share = "none"
    bounds: ClassVar[tuple[float, float]] = (-inf, 0.0)

    @property
    def words(self) -> str:
        """Names the columns."""
        return f"log-probability of {self.completion} after {self.prompt}"

    @property
    def unit(self) -> str:
        """Nats."""
        return divided("nats", self.normalize)

    @property
    def columns(self) -> Mapping[str, str]:
        """Both."""
        return {self.completion: "completion", self.prompt: "prompt"}

    def example(self, row: Row) -> Example:
        """The completion after its prompt."""
        made = row.sequence(self.prompt, self.completion, share=self.normalize)
        return Example(row.number, (made,))

    def scores(self, outputs: Outputs) -> Tensor:
        """Log p(completion | prompt) / length."""
        found = log_probabilities(outputs, every(outputs.batch))
        return shares(found, outputs.batch, self.normalize)


@final
class PreferenceMargin(SequenceMetric):
    """Log-probability of the chosen answer less that of the rejected one: DPO's implicit reward without its reference
    (Rafailov et al. 2023), over their lengths where these are named.
    """

    name: Literal["preference-margin"]
    prompt: Text
    chosen: Text
    rejected: Text
    normalize: Share = "none"
    counted_by: ClassVar[str] = "choice"

    @property
    def words(self) -> str:
        """Names the columns."""
        return f"log-probability of {self.chosen} less that of {self.rejected} after {self.prompt}"

    @property
    def unit(self) -> str:
        """Nats."""
        return divided("nats", self.normalize)

    @property
    def columns(self) -> Mapping[str, str]:
        """All three."""
        return {self.chosen: "chosen", self.rejected: "rejected", self.prompt: "prompt"}

    def example(self, row: Row) -> Example:
        """Both answers after the prompt."""
        return Example(
            row.number,
            tuple(
                row.sequence(self.prompt, column, share=self.normalize)
                for column in (self.chosen, self.rejected)
            ),
        )

    def scores(self, outputs: Outputs) -> Tensor:
        """Log p(chosen | prompt) / length - log p(rejected | prompt) / length."""
        found = log_probabilities(outputs, every(outputs.batch))
        chosen, rejected = shares(found, outputs.batch, self.normalize).reshape(-1, 2).unbind(1)
        return chosen - rejected
