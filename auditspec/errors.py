"""Every error that auditspec raises on purpose, and the exit code that each one means.

An error says what is wrong, where, and what to do about it. The command line prints it without
a traceback and exits with its code; anything else that escapes is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line. Where several hold, the order is 2, 3, 4, 1, 5."""

    PASS = 0
    POLICY = 1  # the policy gate failed
    USAGE = 2  # usage or spec error
    EVIDENCE = 3  # evidence missing or mismatched
    ESTIMATION = 4  # estimation failed
    INCONCLUSIVE = 5  # inconclusive where the policy forbids it
    SIGNATURE = 6  # signature or digest invalid
    UNKNOWN_SIGNER = 7  # intact, but the signer is unknown to the given trust
    NOT_REBUILT = 8  # signed by trusted keys, but reports could not be made again here


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, with its place.

    `line` and `column` count from 1; 0 means that the problem has no place inside the file.
    """

    code: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        lead = f"{place}: " if place else ""
        tail = f"; {self.hint}" if self.hint else ""
        return f"{lead}error[{self.code}] {self.message}{tail}"


MOST = 1000
"""Characters of one line of an error; what is quoted from a hostile file can be of any length."""


def shortened(text: str, most: int) -> str:
    """The text, cut in the middle to at most `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


class AuditspecError(Exception):
    """Root of every deliberate error.

    `message` says what is wrong and where, `remedy` what the reader can do about it; what they quote is cut.
    """

    exit_code: Exit = Exit.USAGE

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = "\n".join(shortened(line, MOST) for line in message.split("\n"))
        self.remedy = shortened(remedy, MOST)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class UsageError(AuditspecError):
    """The command was called in a way that cannot work."""


class PluginError(AuditspecError):
    """A plug-in does not keep the interface of its kind."""


class SpecError(AuditspecError):
    """The spec is wrong; carries every problem found in one pass."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class EvidenceError(AuditspecError):
    """Evidence is missing, damaged, unsafe to read, or not what its digest says."""

    exit_code = Exit.EVIDENCE


class RecordError(EvidenceError):
    """A training record cannot be read, or a run cannot be recorded."""


class EstimationError(AuditspecError):
    """An estimate could not be computed."""

    exit_code = Exit.ESTIMATION


class UnsupportedError(EstimationError):
    """An estimator does not cover this run; the message names the feature, the remedy a method that does."""


class BudgetError(EstimationError):
    """The budget pays for no estimate; the remedy names the one that does."""


class SignatureError(AuditspecError):
    """A packet failed verification; `step` names the first step that failed."""

    exit_code = Exit.SIGNATURE

    def __init__(self, step: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{step}: {message}", remedy)
        self.step = step


class UnknownSignerError(SignatureError):
    """The packet is intact, but no key of the trust policy made its signature."""

    exit_code = Exit.UNKNOWN_SIGNER


class NotRebuiltError(SignatureError):
    """All else holds, but reports were not made again: another renderer drew them, or drawing them takes more than it may."""

    exit_code = Exit.NOT_REBUILT


class WithheldError(EvidenceError):
    """Something needs a value of the results that is withheld; `pointer` names it."""

    def __init__(self, pointer: str) -> None:
        super().__init__(
            f"{pointer} is withheld",
            "ask whoever withheld it for the value, or for the whole packet",
        )
        self.pointer = pointer
