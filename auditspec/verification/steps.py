"""The steps of a verification: their order, and what came out of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from auditspec.errors import SignatureError

SEALED = (
    "packet-readable",
    "envelope-present",
    "envelope-wellformed",
    "payload-type",
    "statement-wellformed",
    "signatures",
    "timestamps",
    "validity",
    "thresholds",
    "files-listed",
    "files-present",
    "digests",
)
"""Who signed which bytes: the files are only read and hashed."""
CONTENT = (
    "results-consistent",
    "withheld",
    "conclusions",
    "pdf-signature",
    "expected",
    "disclosures",
    "rebuild",
)
"""What the bytes say: here they are parsed, behind the fence."""
LOGGED = ("log-inclusion", "log-consistency")
"""Whether a log holds the packet."""
STEPS = SEALED + CONTENT + LOGGED
Outcome: TypeAlias = Literal["pass", "weaker", "fail", "skipped"]


@dataclass(frozen=True)
class Step:
    """One step of a verification, and what came out."""

    number: int
    name: str
    outcome: Outcome | Literal["not-run"]
    """`weaker`: it holds as far as it could be checked; `skipped`: there is nothing to check; `not-run`: an earlier
    step failed."""
    detail: str = ""


class Note:
    """What a step that holds has to say."""

    def __init__(self) -> None:
        self.outcome: Literal["pass", "weaker", "skipped"] = "pass"
        self.detail = ""

    def note(self, detail: str, otherwise: str) -> None:
        """Say what was checked; where that is nothing, the step is skipped, and says why."""
        self.outcome, self.detail = ("pass", detail) if detail else ("skipped", otherwise)

    def weaken(self, detail: str) -> None:
        """Say how much less was checked than the step stands for."""
        self.outcome, self.detail = "weaker", detail


class Protocol:
    """The steps that were run, in order."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Note]:
        """Run a step: it fails if its body raises a `SignatureError`."""
        noted = Note()
        try:
            yield noted
        except SignatureError as error:
            self.add(name, "fail", error.message.removeprefix(f"{name}: "))
            raise
        self.add(name, noted.outcome, noted.detail)

    def add(self, name: str, outcome: Outcome, detail: str) -> None:
        """Write down what came out of a step."""
        self.steps.append(Step(STEPS.index(name) + 1, name, outcome, detail))

    def complete(self) -> tuple[Step, ...]:
        """All steps, those after a failure as not run."""
        done = len(self.steps)
        rest = (Step(n, name, "not-run") for n, name in enumerate(STEPS, 1) if n > done)
        return (*self.steps, *rest)
