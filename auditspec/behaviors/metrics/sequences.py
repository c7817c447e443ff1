"""What metrics of language models share: token sequences of the evaluation table, and what a model says of them.

The batch is the audit's own, so that no `load_batch` stands between the table and the model: `input_ids` and
`attention_mask`, [B, T] of int64 each, the sequences to the left, 0 in both where there is none.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from auditspec.artifacts.tokenizer import Tokenizer
from auditspec.behaviors.metrics.interface import Metric, Outputs
from auditspec.errors import EstimationError, EvidenceError
from auditspec.spec.measures import OutputKind

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    import torch
    from torch import Tensor

PADDING = 0
"""Token id of the places after a sequence's end; a model sees there that `attention_mask` is 0."""
FIRST = 16
"""Sequences by which the kind of a model's outputs is told."""
Share = Literal["none", "tokens", "characters"]
"""What a log-probability is divided by."""


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, of which those from `start` on are scored."""

    ids: tuple[int, ...]
    start: int
    characters: int | None
    """Of the text that is scored; None where tokens came without one."""

    @property
    def scored(self) -> int:
        """How many tokens are scored: the first of a sequence has nothing that it could be told from."""
        return len(self.ids) - max(self.start, 1)

    def length(self, share: Share) -> int:
        """What its log-probability is divided by."""
        if share == "characters" and self.characters is not None:
            return self.characters
        return self.scored if share == "tokens" else 1


@dataclass(frozen=True)
class Example:
    """What a metric of sequences asks about one row."""

    row: int
    sequences: tuple[TokenSequence, ...]
    truth: Any = None
    """Whatever else the metric needs of the row."""


@dataclass(frozen=True)
class Row:
    """One row of the evaluation table, as texts or tokens."""

    number: int
    values: Mapping[str, Any]
    tokenizer: Tokenizer | None

    def tokens(self, value: Any, column: str) -> tuple[tuple[int, ...], int | None]:
        """Token ids of a text, or of a list of them, and the characters of the text.

        Raises:
            EvidenceError: if it is neither, or a text that no tokenizer reads.
        """
        if isinstance(value, str):
            if self.tokenizer is None:
                raise EvidenceError(
                    f"column {column!r} holds texts, and model.tokenizer names nothing that reads them",
                    "name the artifact with the model's tokenizer.json: model.tokenizer",
                )
            return self.tokenizer.encode(value), len(value)
        if isinstance(value, list | tuple | np.ndarray) and not len(value):
            return (), None
        ids = np.asarray(value if isinstance(value, list | tuple | np.ndarray) else None)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or (ids < 0).any():
            raise self.wrong(column, "neither a text nor a list of token ids")
        return tuple(map(int, ids)), None

    def sequence(
        self, prompt: str | None, column: str, value: Any = None, share: Share = "none"
    ) -> TokenSequence:
        """A text to score after a prompt: the tokens of both, each read by itself.

        Args:
            prompt: the column of what stands before it, if anything does.
            column: of the text.
            value: in place of the column's.
            share: what its log-probability is to be divided by.

        Raises:
            EvidenceError: if nothing of it could be scored, a column holds neither texts nor tokens, or characters are
                to be counted of tokens.
        """
        before = () if prompt is None else self.tokens(self.values[prompt], prompt)[0]
        if prompt is not None and not before:
            raise self.wrong(prompt, "empty, so that nothing tells the first token after it")
        ids, characters = self.tokens(self.values[column] if value is None else value, column)
        made = TokenSequence(before + ids, len(before), characters)
        if made.scored < 1:
            raise self.wrong(column, "too short: no token of it can be scored")
        if share == "characters" and not characters:
            raise self.wrong(column, "no text whose characters could be counted")
        return made

    def several(self, column: str) -> list[Any]:
        """The items of a column that holds a list in each row.

        Raises:
            EvidenceError: if it does not.
        """
        value = self.values[column]
        if not isinstance(value, list | tuple | np.ndarray) or not len(value):
            raise self.wrong(column, "no list of texts, or of lists of token ids")
        return list(value)

    def wrong(self, column: str, what: str) -> EvidenceError:
        """An error about a value of the row."""
        return EvidenceError(
            f"column {column!r} of row {self.number} is {what}", "correct the table, or the column"
        )


class SequenceMetric(Metric):
    """A metric of token sequences, from the logits of the next token, [B, T, V]."""

    reads: ClassVar[tuple[OutputKind, ...]] = ("token-logits",)
    of_sequences: ClassVar[bool] = True

    @abstractmethod
    def example(self, row: Row) -> Example:
        """What is asked about a row.

        Raises:
            EvidenceError: if the row does not hold it.
        """

    def examples(
        self,
        columns: Mapping[str, Any],
        rows: Iterable[int],
        tokenizer: Tokenizer | None,
    ) -> list[Example]:
        """What is asked about rows of a table.

        Args:
            columns: those of `self.columns`, whole.
            rows: numbers of rows.
            tokenizer: of the model's texts; None where there is none.

        Raises:
            EvidenceError: naming a row that does not hold it.
        """
        return [
            self.example(Row(int(r), {name: columns[name][r] for name in self.columns}, tokenizer))
            for r in rows
        ]


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    """The batch that a model's `predict` is given: `input_ids` and `attention_mask`, [B, T]."""
    import torch

    width = max(map(len, sequences))
    ids = [[*s, *[PADDING] * (width - len(s))] for s in sequences]
    mask = [[1] * len(s) + [0] * (width - len(s)) for s in sequences]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def first_batch(examples: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
    """A batch of the first sequences of examples."""
    return padded([s.ids for s in every(examples)[:FIRST]], device)


def token_logits(outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of the next token at every place, [B, T, V].

    Raises:
        EstimationError: if `predict` gives another shape.
    """
    given, wanted = outputs.predict(outputs.model, batch), batch["input_ids"].shape
    if given.dim() != 3 or given.shape[:2] != wanted:
        raise EstimationError(
            f"predict gave a tensor of shape {tuple(given.shape)} for token ids of shape {tuple(wanted)}",
            "return the logits of the next token at every place, [B, T, V]",
        )
    if (most := int(batch["input_ids"].max())) >= given.shape[2]:
        raise EstimationError(
            f"token {most} is asked for; the model has tokens 0 to {given.shape[2] - 1}",
            "correct the tokens, or name the tokenizer of this model",
        )
    return given


def log_probabilities(outputs: Outputs, sequences: Sequence[TokenSequence]) -> Tensor:
    """Log p of the scored tokens given all before them, in nats, summed over each sequence: [S], in float64.

    Sum over t >= start of log softmax(z_{t-1})[x_t], z being the logits of the next token.
    """
    import torch

    totals = []
    for begin in range(0, len(sequences), outputs.batch_size):
        part = sequences[begin : begin + outputs.batch_size]
        batch = padded([s.ids for s in part], outputs.labels.device)
        logits, targets = token_logits(outputs, batch)[:, :-1], batch["input_ids"][:, 1:]
        places = torch.arange(1, targets.shape[1] + 1, device=targets.device)
        starts, ends = (
            torch.tensor(edges, device=targets.device)[:, None]
            for edges in ([s.start for s in part], [len(s.ids) for s in part])
        )
        scored = (places >= starts) & (places < ends)
        z = logits[scored].double()
        log_p = z.gather(1, targets[scored][:, None])[:, 0] - z.logsumexp(1)
        empty = torch.zeros(scored.shape, dtype=log_p.dtype, device=log_p.device)
        totals.append(empty.masked_scatter(scored, log_p).sum(1))
    return torch.cat(totals)


def by_example(values: Tensor, examples: Sequence[Example]) -> list[Tensor]:
    """Values of all sequences [S], as those of each example."""
    import torch

    return list(torch.split(values, [len(example.sequences) for example in examples]))


def shares(values: Tensor, examples: Sequence[Example], share: Share) -> Tensor:
    """Log-probabilities [S] over what they are divided by."""
    lengths = [s.length(share) for example in examples for s in example.sequences]
    return values / values.new_tensor(lengths)


def every(examples: Sequence[Example]) -> list[TokenSequence]:
    """All sequences, in order."""
    return [s for example in examples for s in example.sequences]
