"""What a language model writes: refusals, canaries, formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from auditspec.behaviors.metrics.interface import Outputs
from auditspec.behaviors.metrics.patterns import compiled
from auditspec.behaviors.metrics.sequences import (
    Example,
    Row,
    SequenceMetric,
    TokenSequence,
    padded,
    token_logits,
)
from auditspec.errors import EstimationError, EvidenceError
from auditspec.frozen import Frozen
from auditspec.results import Text
from auditspec.spec.models import EntryPoint, Times

if TYPE_CHECKING:  # whoever reads a spec needs no torch
    import torch
    from torch import Tensor

Ids = tuple[int, ...]
Token = Annotated[int, Field(ge=0)]
TokenIds = Annotated[tuple[Token, ...], Field(min_length=1)]
MATCHES = ("contains", "answer", "pattern", "entrypoint")
NEEDS_TEXT = "is matched in text, and model.tokenizer names nothing that gives it"


class Sampling(Frozen):
    """How tokens are drawn, in place of the likeliest."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the numbers that are drawn: the same ones for a row whatever stands beside it, in every model."""
    draws: Times = 1
    """Continuations of each prompt; the score is the share of them that matches."""
    repeats: Times = 5
    """How often the deployed model is scored, with other numbers each time, to tell what they do to its scores."""


@final
class Generation(SequenceMetric):
    """Share of prompts whose continuation matches: contains one of several texts, or that of a column; holds a regular
    expression; or satisfies a function of the audited code.

    Tokens are the likeliest, one after another, or drawn by adding Gumbel noise to the logits (Gumbel 1954), at most
    `tokens` of them, and none after a stop token.
    """

    name: Literal["generation"]
    prompt: Text
    tokens: Annotated[int, Field(ge=1, le=4096)]
    stop: tuple[Token | Text, ...] = ()
    """Tokens, by id or by name, at which a continuation ends; they are no part of it."""
    sample: Sampling | None = None
    """None: the likeliest token each time."""
    contains: Annotated[tuple[Text | TokenIds, ...], Field(min_length=1)] | None = None
    """Texts, or lists of token ids, of which one must occur."""
    answer: Text | None = None
    """Column whose text, or tokens, must occur."""
    pattern: Text | None = None
    """Regular expression of RE2 that must be found in the text."""
    entrypoint: EntryPoint | None = None
    """(model, batch) -> [B], 1 where it matches; of the code artifact."""
    unit: ClassVar[str] = "share"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    differentiable: ClassVar[bool] = False

    @model_validator(mode="after")
    def _matches_once(self) -> Generation:
        if sum(getattr(self, name) is not None for name in MATCHES) != 1:
            raise PydanticCustomError(
                "AS057", "state what a continuation must match: one of " + ", ".join(MATCHES)
            )
        return self

    @property
    def words(self) -> str:
        """Names the prompt and the match."""
        (name,) = (n for n in MATCHES if getattr(self, n) is not None)
        shown = {
            "contains": "with one of the texts",
            "answer": f"with the text of {self.answer}",
            "pattern": f"that match {self.pattern}",
            "entrypoint": f"that satisfy {self.entrypoint}",
        }[name]
        drawn = "sampled" if self.sample else "greedy"
        return f"share of {drawn} continuations of {self.prompt} {shown}"

    @property
    def binary(self) -> bool:
        """Unless several continuations are drawn."""
        return self.sample is None or self.sample.draws == 1

    @property
    def scorings(self) -> int:
        """As the spec states it, where tokens are drawn."""
        return 1 if self.sample is None else self.sample.repeats

    @property
    def columns(self) -> Mapping[str, str]:
        """The prompt, and what must occur."""
        return {self.prompt: "prompt"} | ({} if self.answer is None else {self.answer: "answer"})

    @property
    def functions(self) -> Mapping[str, str]:
        """The one that matches."""
        return {} if self.entrypoint is None else {"entrypoint": self.entrypoint}

    def example(self, row: Row) -> Example:
        """The prompt; with it the stop tokens, and what must occur."""
        prompt, _ = row.tokens(row.values[self.prompt], self.prompt)
        if not prompt:
            raise row.wrong(self.prompt, "empty, so that nothing tells the first token after it")
        wanted = self.contains if self.answer is None else (row.values[self.answer],)
        if row.tokenizer is None and (
            self.pattern is not None or any(isinstance(w, str) for w in wanted or ())
        ):
            option = next(n for n in MATCHES if getattr(self, n) is not None)
            raise EvidenceError(
                f"{option} {NEEDS_TEXT}", "name the model's tokenizer.json: model.tokenizer"
            )
        if self.answer is not None and not isinstance(row.values[self.answer], str):
            wanted = (row.tokens(row.values[self.answer], self.answer)[0],)
        truth = frozenset(self._stops(row)), tuple(wanted or ())
        return Example(row.number, (TokenSequence(prompt, 0, None),), truth)

    def _stops(self, row: Row) -> Iterator[int]:
        for token in self.stop:
            found = token if isinstance(token, int) else None
            if isinstance(token, str) and row.tokenizer is not None:
                found = row.tokenizer.token(token)
            if found is None:
                raise EvidenceError(
                    f"stop: no token is called {token!r}",
                    "name one of the model's tokenizer, or its id",
                )
            yield found

    def scores(self, outputs: Outputs) -> Tensor:
        """The share of each prompt's continuations that match."""
        import torch

        draws = 1 if self.sample is None else self.sample.draws
        first = outputs.chance * draws
        found = [self._matched(outputs, draw) for draw in range(first, first + draws)]
        return torch.stack(found).mean(0)

    def _matched(self, outputs: Outputs, draw: int) -> Tensor:
        import torch

        device, examples = outputs.labels.device, outputs.batch
        written = self.continuations(outputs, draw)
        reader = outputs.asked.tokenizer
        texts = [None if reader is None else reader.decode(ids) for ids in written]
        if self.entrypoint is not None:
            prompts = [list(e.sequences[0].ids) for e in examples]
            asked = {"prompt": prompts, "generated": [*map(list, written)], "text": texts}
            judged = outputs.functions[self.entrypoint](outputs.model, asked)
            if judged.shape != (len(examples),):
                raise EstimationError(
                    f"{self.entrypoint} gave a tensor of shape {tuple(judged.shape)} for "
                    f"{len(examples)} continuations",
                    "give one number a continuation, 1 where it matches",
                )
            return judged.double().to(device)
        if self.pattern is not None:
            found = compiled(self.pattern)
            hits = [found.search(text or "") is not None for text in texts]
        else:
            hits = [
                any(_occurs(w, ids, text) for w in e.truth[1])
                for e, ids, text in zip(examples, written, texts, strict=True)
            ]
        return torch.tensor(hits, dtype=torch.float64, device=device)

    def continuations(self, outputs: Outputs, draw: int = 0) -> list[Ids]:
        """The tokens that a model writes after each prompt, those from a stop token on left out.

        Args:
            outputs: of a model in eval mode.
            draw: which of several, where they are sampled.
        """
        written: list[Ids] = []
        for begin in range(0, len(outputs.batch), outputs.batch_size):
            part = outputs.batch[begin : begin + outputs.batch_size]
            written += self._continued(outputs, part, draw)
        return written

    def _continued(self, outputs: Outputs, examples: Sequence[Example], draw: int) -> list[Ids]:
        import torch

        prompts = [e.sequences[0].ids for e in examples]
        ids, noise = [list(p) for p in prompts], [self._noise(e, draw) for e in examples]
        writing = list(range(len(examples)))
        with torch.no_grad():
            for _ in range(self.tokens):
                batch = padded([ids[place] for place in writing], outputs.labels.device)
                logits = token_logits(outputs, batch)
                ends = batch["attention_mask"].sum(1) - 1
                last = logits[torch.arange(len(writing), device=ends.device), ends].double().cpu()
                if bool(last.isnan().any()):
                    raise EstimationError(
                        "predict gave NaN",
                        "check the model's inputs, and whether a counterfactual diverged",
                    )
                going = []
                for place, z in zip(writing, last, strict=True):
                    token = self._next(z, noise[place])
                    if token not in examples[place].truth[0]:
                        ids[place].append(token)
                        going.append(place)
                if not (writing := going):
                    break
        return [tuple(i[len(p) :]) for i, p in zip(ids, prompts, strict=True)]

    def _noise(self, example: Example, draw: int) -> torch.Generator | None:
        """Numbers of a row and a draw."""
        import torch

        if self.sample is None:
            return None
        told = f"{self.sample.seed} {example.row} {draw}".encode()
        seed = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(seed)

    def _next(self, z: Tensor, noise: torch.Generator | None) -> int:
        """Argmax of z / temperature - log(-log u): a draw from softmax(z / temperature)."""
        if noise is not None and self.sample is not None:
            import torch

            u = torch.rand(z.shape, generator=noise, dtype=torch.float64)
            z = z / self.sample.temperature - (-u.log()).log()
        return int(z.argmax())


def _occurs(wanted: Any, ids: Ids, text: str | None) -> bool:
    """Whether a text stands in the text, or tokens in a row among the tokens."""
    if isinstance(wanted, str):
        return wanted in (text or "")
    width = len(wanted)
    return any(ids[n : n + width] == tuple(wanted) for n in range(len(ids) - width + 1))
