"""The audit's end of the line: starts the audited code's process, asks it, and believes nothing about its answers."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from auditspec import errors
from auditspec.engine.batched_gradient import NotVectorizedError
from auditspec.errors import AuditspecError, EstimationError, UsageError
from auditspec.messages import message
from auditspec.record.generators import Generators
from auditspec.sealed.ambience import Drawn, switches
from auditspec.sealed.channel import BrokenError, Channel
from auditspec.sealed.codec import Reader, Writer
from auditspec.sealed.isolation import MEASURES, Wanted
from auditspec.sealed.process import Line, printable

ANSWER_SECONDS = 3600.0
"""How long one answer may take."""
BEGIN_SECONDS = 300.0
_KINDS = {"model": lambda number: ("model", int(number))}
_OWN = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, AuditspecError) and name != "SpecError"
}


class CodeError(Exception):
    """Something that the audited code raised in its process; `place` is the line of the code that it passed through."""

    place = ""
    text = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Question:
    """What was asked, and what stood around it: enough to ask it again."""

    number: int
    """How many were asked before; what the answer leaves in the process is numbered by it."""
    kind: str
    asked: Mapping[str, Any]
    """Its arguments."""
    written: Any
    """The same as JSON."""
    tensors: list[Tensor]
    blocks: list[list[Tensor]]
    switches: Mapping[str, Any]
    drawn: Generators

    def at(self, place: int) -> Question:
        """The same at one of the `states` that it is about."""
        kind, *pairs = self.written
        written = [kind, *([n, 1 if n == "states" else v] for n, v in pairs)]
        blocks = [[t[place : place + 1] for t in block] for block in self.blocks]
        return replace(self, written=written, blocks=blocks)

    def copy(self) -> Question:
        """The same, whatever becomes of the tensors."""
        return replace(
            self,
            asked={k: v for k, v in self.asked.items() if isinstance(v, int | str)},
            tensors=[t.clone() for t in self.tensors],
            blocks=[[t.clone() for t in block] for block in self.blocks],
        )


class Client:
    """The audit's end of the line to a process.

    Args:
        line: to the audited code's.
        wanted: how that was to be isolated.
        device: on which it computes.

    Raises:
        UsageError: if the kernel does not grant what is required.
        EstimationError: if the process does not start.
    """

    def __init__(self, line: Line, wanted: Wanted, device: torch.device) -> None:
        self._line = line
        self._released: list[int] = []
        self.failure: EstimationError | None = None
        """Why there is nobody to ask any more."""
        self._drawn = Drawn(device)
        self._switches: dict[str, Any] | None = None
        self._asked = 0
        self._first = True
        self.noted: Callable[[Question, Any], None] | None = None
        """Told of every question that was answered, with the answer."""
        self.device = device
        self._channel = Channel(line.socket.fileno(), *line.arenas)
        greeting, *_ = self._received(BEGIN_SECONDS)
        self.measures = tuple(m for m in greeting["measures"] if m in (*MEASURES, "namespaces"))
        lacking = [m for m in MEASURES if m not in self.measures]
        if wanted == "required" and lacking:
            raise UsageError(
                f"this machine does not isolate the audited code's {' and '.join(lacking)}",
                "audit on Linux 5.13 or later with Landlock and seccomp, or with --isolation best",
            )

    def release(self, number: int) -> None:
        """Let go of something that stays there; told with the next question."""
        self._released.append(number)

    def ask(
        self,
        kind: str,
        question: Mapping[str, Any],
        special: Callable[[Any], list[Any] | None] = lambda value: None,
    ) -> Any:
        """Ask, and read the answer: tensors are copies of what the process wrote.

        Args:
            kind: of the question.
            question: its arguments.
            special: writes values that are no plain ones.

        Raises:
            EstimationError: if the process is gone, too late, or does not answer the question.
            CodeError: as the audited code raised it; of a class by the same name.
            AuditspecError: that was raised there on purpose.
        """
        if self.failure is not None:
            raise self.failure
        with torch._C.DisableTorchFunction():
            self._asked += 1
            writer = Writer(special=special)
            written = writer.value(dict(question))
            message: dict[str, Any] = {"kind": kind, "number": self._asked, "ask": written}
            now = switches()
            if now != self._switches:
                message["switches"] = writer.value(now)
                self._switches = now
            if news := self._drawn.news():
                message["drawn"] = {k: v.hex() for k, v in news.items()}
            if self._released:
                message["release"], self._released = self._released, []
            before = self._drawn.known or Generators.now(self.device)
            answer, drawn = self._answered(message, writer.tensors, writer.blocks)
            with self._holding_together():
                self._drawn.take(drawn)
            if isinstance(answer, Exception):
                raise answer
            if self.noted is not None:
                tensors, blocks = writer.tensors, writer.blocks
                asked = Question(self._asked, kind, question, written, tensors, blocks, now, before)
                self.noted(asked, answer)
            return answer

    def ask_again(self, question: Question) -> Any:
        """Ask what another process was asked, as it was asked there; this process's generators stay as they are.

        Raises:
            As `ask`.
        """
        with torch._C.DisableTorchFunction():
            message = {
                "kind": question.kind,
                "number": question.number,
                "ask": question.written,
                "switches": Writer().value(question.switches),
                "drawn": {k: v.hex() for k, v in question.drawn.states().items()},
                "release": self._released,
            }
            self._released = []
            answer, _ = self._answered(message, question.tensors, question.blocks)
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _answered(
        self,
        message: Any,
        tensors: list[Tensor],
        blocks: list[list[Tensor]],
    ) -> tuple[Any, dict[str, bytes]]:
        """An answer, or what was raised; and the states of the generators that were drawn from for it."""
        if self._first:
            message["device"], self._first = str(self.device), False
        try:
            self._channel.send(message, tensors, blocks)
        except BrokenError as error:
            raise self._broken(str(error)) from None
        reply, tensors, blocks = self._received(ANSWER_SECONDS)
        with self._holding_together():
            drawn = {str(k): bytes.fromhex(v) for k, v in reply["drawn"].items()}
            if "error" not in reply:
                own, owned = [_own(t) for t in tensors], [_all_own(b) for b in blocks]
                return Reader(own, owned, _KINDS).value(reply["value"]), drawn
            return _raised(reply["error"]), drawn

    @contextmanager
    def _holding_together(self) -> Iterator[None]:
        try:
            yield
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            errors.RecordError,
        ) as wrong:
            raise self._broken(f"its answer does not hold together ({wrong})") from None

    def _received(self, seconds: float) -> tuple[Any, list[Tensor], list[list[Tensor]]]:
        try:
            return self._channel.receive(seconds)
        except BrokenError as error:
            raise self._broken(str(error)) from None

    def _broken(self, why: str) -> EstimationError:
        how = self._line.ended() or f"was ended: {why}"
        self.failure = EstimationError(
            f"the audited code's process {how}",
            "look at what it printed; code that ends its process, or fills the memory, cannot be audited",
        )
        return self.failure


def _own(tensor: Tensor) -> Tensor:
    """A copy of a tensor that somebody else may still write to, with values of its type."""
    if tensor.dtype == torch.bool:
        return tensor.view(torch.uint8) != 0
    return tensor.clone()


def _all_own(block: list[Tensor]) -> list[Tensor]:
    if not block or any(t.dtype == torch.bool for t in block):
        return [_own(t) for t in block]
    copies = [torch.empty_like(t) for t in block]
    torch._foreach_copy_(copies, block)
    return copies


def _raised(described: Mapping[str, Any]) -> Exception:
    """What was raised in the other process."""
    if "not_vectorized" in described:
        if described["not_vectorized"] == "no-scalar-objective":
            return NotVectorizedError(message("no-scalar-objective"))
        return NotVectorizedError(message("vmap-refuses", error=printable(described["error"])))
    if "own" in described:
        kind = _OWN[described["own"]]
        return kind(printable(described["message"]), printable(described["remedy"]))
    base = getattr(builtins, str(described["base"]), Exception)
    usable = isinstance(base, type) and issubclass(base, Exception) and base is not Exception
    bases = (
        (CodeError, base)
        if usable and not issubclass(base, OSError | UnicodeError)
        else (CodeError,)
    )
    name = str(described["name"])
    raised: Any = type(name if name.isidentifier() else "Exception", bases, {})()
    raised.text, raised.place = printable(described["text"]), printable(described["place"])
    return raised  # type: ignore[no-any-return]
