"""The fence: what a packet's files say is examined in one process of its own, within limits.

The process gets the files and the policy, and answers with one line a step, which are read strictly. Where it ends
before the last step, the step that it was at fails; where it comes to a limit as it makes the packet's files again, the last step,
these were not made again. Drawing takes its time with every page, so that step has more to spend, by the size of the results.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import confined, strict_json
from auditspec.errors import (
    AuditspecError,
    EvidenceError,
    SignatureError,
    UsageError,
    WithheldError,
    shortened,
)
from auditspec.report.print_library import load_weasyprint
from auditspec.sign import certificates, keys
from auditspec.sign.keys import PublicKey
from auditspec.sign.packet import RESULTS
from auditspec.verification.content import Content
from auditspec.verification.steps import CONTENT, Note, Outcome, Protocol

SECONDS = 10
"""Most processor time of the process, once it has loaded what it is made of (a second or two)."""
MEMORY = 512 * 2**20
"""Most bytes of memory that it may fill: address space, beyond what it is made of and does not touch."""
DRAWING_SECONDS, DRAWING_MEMORY = 2e-4, 2**12
"""Processor time and memory that drawing may take besides, for each byte of the results."""
DRAWN = 500_000
"""Most bytes of the results that count for that."""
ANSWER = 2**18
"""Most bytes of the answer."""
DETAIL = 1000
"""Most characters of what a step says."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
"""What the process keeps of the environment."""


class Line(BaseModel):
    """What the process says about one step."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    step: str
    outcome: Literal["pass", "weaker", "skipped", "fail", "unusable"]
    """`unusable`: a plug-in, and not the packet, is at fault."""
    detail: Annotated[str, Field(max_length=DETAIL)] = ""
    remedy: Annotated[str, Field(max_length=DETAIL)] = ""


def examine_fenced(content: Content, protocol: Protocol, times: int = 1) -> None:
    """Run the steps of `examination.examine` in a process of its own.

    Args:
        content: what is examined.
        protocol: where the steps are written down.
        times: by which the bounds on processor time and memory are multiplied.

    Raises:
        SignatureError: at the first step that does not hold, or at which the process came to a limit.
        UsageError: if a plug-in cannot be used.
    """
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        _Pickler(question).dump(content)
        question.seek(0)
        given = (question.fileno(), answer.fileno())
        stopped, bounds = "", _Bounds.of(content, times)
        wall = 10 * (bounds.seconds + bounds.more[1])
        try:
            confined.run(__name__, (*given, times), given, wall, _environment())
        except confined.StoppedError as error:
            stopped = str(error)
        answer.seek(0)
        lines = answer.read(ANSWER).splitlines()
    for name, written in zip(CONTENT, [*lines, *[b""] * len(CONTENT)], strict=False):
        line = _line(name, written) if written else _unwritten(name, stopped, bounds)
        if line.outcome == "unusable":
            raise UsageError(line.detail, line.remedy)
        with protocol.step(name) as step:
            if line.outcome == "fail":
                raise SignatureError(name, line.detail, line.remedy)
            step.outcome, step.detail = line.outcome, line.detail


def main(source: str, target: str, times: str) -> None:
    """What the process does: read the question, limit itself, and answer.

    Raises:
        SystemExit: if it came to the limit of its memory.
    """
    load_weasyprint()
    # Loaded before the limits, which are for what is read.
    from auditspec.report.exports import pdf_file, pdf_text  # noqa: F401
    from auditspec.spec.measures import DeclaredMetric
    from auditspec.verification import examination  # noqa: F401

    with contextlib.suppress(
        UsageError
    ):  # the step that asks for a plug-in says what is wrong with it
        DeclaredMetric.classes()
    gc.disable()  # the process ends with the packet: nothing in it lives long enough to be worth a search
    with os.fdopen(int(source), "rb") as file:
        content: Content = pickle.load(file)  # noqa: S301 - our parent wrote it
    bounds = _Bounds.of(content, int(times))
    confined.limit(bounds.memory - confined.resident(), bounds.seconds, ANSWER, bounds.more)
    with os.fdopen(int(target), "wb", buffering=0) as out:
        try:
            tell(content, _Answer(out))
        except MemoryError:
            confined.refuse("it takes more memory than it may")


def tell(content: Content, answer: _Answer) -> None:
    """Run the steps, and say of the one that fails why.

    Raises:
        MemoryError: if memory ends.
    """
    from auditspec.verification.examination import examine

    try:
        examine(content, answer)
    except SignatureError as error:
        answer.say("fail", error.message.removeprefix(f"{error.step}: "), error.remedy)
    except WithheldError as error:
        answer.say("fail", f"cannot be told: {error.message}", error.remedy)
    except UsageError as error:
        answer.say("unusable", error.message, error.remedy)
    except AuditspecError as error:
        answer.say("fail", error.message, error.remedy)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can fail anywhere in their reader
        answer.say("fail", f"it cannot be read ({type(error).__name__}: {error})")


@dataclass(frozen=True)
class _Bounds:
    """What the process may take, and what drawing adds: memory in bytes, processor time in seconds."""

    memory: int
    seconds: int
    more: tuple[int, int]

    @classmethod
    def of(cls, content: Content, times: int) -> _Bounds:
        """For a packet."""
        size = min(len(content.files.get(RESULTS, b"")), DRAWN)
        more = times * size * DRAWING_MEMORY, math.ceil(times * size * DRAWING_SECONDS)
        return cls(times * MEMORY, times * SECONDS, more)

    @property
    def words(self) -> str:
        """All of it."""
        memory, seconds = self.memory + self.more[0], self.seconds + self.more[1]
        return f"{seconds} s of processor time and {memory >> 20} MiB of memory"


class _Answer(Protocol):
    """Writes down each step where the parent reads it, as soon as it is done."""

    @contextmanager
    def step(self, name: str) -> Iterator[Note]:
        """Run a step; the last one draws."""
        if name == CONTENT[-1]:
            confined.widen()
        with super().step(name) as noted:
            yield noted

    def __init__(self, out: IO[bytes]) -> None:
        super().__init__()
        self._out = out

    def add(self, name: str, outcome: Outcome, detail: str) -> None:
        """Tell of a step that holds; of one that fails tells `main`, which knows the remedy too."""
        if outcome != "fail":
            self.say(outcome, detail)
            super().add(name, outcome, detail)

    def say(self, outcome: Outcome | Literal["unusable"], detail: str, remedy: str = "") -> None:
        """Write the line of the step that is being run."""
        step = CONTENT[len(self.steps)]
        line = Line(
            step=step,
            outcome=outcome,
            detail=shortened(detail, DETAIL),
            remedy=shortened(remedy, DETAIL),
        )
        self._out.write(line.model_dump_json().encode() + b"\n")


class _Pickler(pickle.Pickler):
    """Writes keys and certificates too, as DER."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, x509.Certificate):
            return certificates.from_der, (certificates.der(value),)
        if isinstance(value, PublicKey):
            return keys.from_der, (keys.der(value),)
        return NotImplemented


def _line(name: str, written: bytes) -> Line:
    """What the process wrote about a step, which must be that one."""
    try:
        line = strict_json.load(Line, written, "line")
    except EvidenceError:
        line = None
    if line is None or line.step != name:
        return Line(step=name, outcome="fail", detail="the process that read it gave no answer")
    return line


def _unwritten(name: str, stopped: str, bounds: _Bounds) -> Line:
    """What is said about a step of which the process wrote nothing, because it ended."""
    if stopped and name == CONTENT[-1]:
        return Line(step=name, outcome="weaker", detail=f"nothing: {stopped} ({bounds.words})")
    why = stopped or "the process that read it ended early"
    return Line(step=name, outcome="fail", detail=why)


def _environment() -> dict[str, str]:
    """The same on every machine, but for where programs and libraries lie; one pool of memory, which is what its limit counts."""
    own = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return own | {"LC_ALL": "C.UTF-8", "TZ": "UTC", "MALLOC_ARENA_MAX": "1"}
