"""Multiple choice: which of several completions a language model finds most likely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import numpy as np
from pydantic import Field

from auditspec.behaviors.metrics.interface import Outputs
from auditspec.behaviors.metrics.likelihood import divided
from auditspec.behaviors.metrics.sequences import (
    Example,
    Row,
    SequenceMetric,
    Share,
    by_example,
    every,
    log_probabilities,
    shares,
)
from auditspec.results import Text
from auditspec.spec.models import Class

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    from torch import Tensor


@final
class Choice(SequenceMetric):
    """Whether the right completion is the most likely one, of several after a prompt; or by how much it is more likely
    than the most likely wrong one. `acc` and `acc_norm` of lm-evaluation-harness (Gao et al. 2021).
    """

    name: Literal["choice"]
    prompt: Text
    choices: Text | Annotated[tuple[Text, ...], Field(min_length=2)]
    """A column that holds a list in each row, or several columns."""
    answer: Text | Class
    """Column with the number of the right one, from 0; or that number where it is the same in every row."""
    normalize: Share = "none"
    score: Literal["correct", "margin"] = "correct"

    @property
    def words(self) -> str:
        """Names the prompt, and what is compared."""
        by = "" if self.normalize == "none" else f" a {self.normalize.removesuffix('s')}"
        if self.score == "correct":
            return f"share of examples whose right choice after {self.prompt} is the likeliest{by}"
        return f"log-probability{by} of the right choice after {self.prompt} less that of the likeliest other"

    @property
    def unit(self) -> str:
        """A share, or nats."""
        return "share" if self.score == "correct" else divided("nats", self.normalize)

    @property
    def binary(self) -> bool:
        """Where the right one is counted."""
        return self.score == "correct"

    @property
    def counted_by(self) -> str:
        """Itself, with another score."""
        return "" if self.binary else "choice with score: correct"

    @property
    def columns(self) -> Mapping[str, str]:
        """The prompt, the choices, and the number of the right one."""
        named = (self.choices,) if isinstance(self.choices, str) else self.choices
        read = dict.fromkeys(named, "choices") | {self.prompt: "prompt"}
        return read | ({self.answer: "answer"} if isinstance(self.answer, str) else {})

    def example(self, row: Row) -> Example:
        """Every choice after the prompt."""
        if isinstance(self.choices, str):
            given = [(self.choices, value) for value in row.several(self.choices)]
        else:
            given = [(column, row.values[column]) for column in self.choices]
        if len(given) < 2:
            raise row.wrong(given[0][0], "a single choice")
        sequences = tuple(
            row.sequence(self.prompt, column, value, self.normalize) for column, value in given
        )
        right: Any = row.values[self.answer] if isinstance(self.answer, str) else self.answer
        if not isinstance(right, int | np.integer) or not 0 <= right < len(sequences):
            name = str(self.answer) if isinstance(self.answer, str) else given[0][0]
            raise row.wrong(name, f"no number of a choice, 0 to {len(sequences) - 1}")
        return Example(row.number, sequences, int(right))

    def scores(self, outputs: Outputs) -> Tensor:
        """1 where the right one is the first that is likeliest; or the margin."""
        import torch

        found = log_probabilities(outputs, every(outputs.batch))
        each = by_example(shares(found, outputs.batch, self.normalize), outputs.batch)
        pairs = list(zip(each, (example.truth for example in outputs.batch), strict=True))
        if self.binary:
            return torch.stack([(p.argmax() == right).double() for p, right in pairs])
        return torch.stack(
            [p[right] - torch.cat([p[:right], p[right + 1 :]]).amax() for p, right in pairs]
        )
