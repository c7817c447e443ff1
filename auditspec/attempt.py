"""What an audit can do without: where it fails, the reason is its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from auditspec.artifacts.code import place_of
from auditspec.errors import AuditspecError, EvidenceError

Made = TypeVar("Made")


@dataclass(frozen=True)
class NotRun:
    """Something that could not be computed."""

    reason: str


def attempt(compute: Callable[[], Made]) -> Made | NotRun:
    """Compute something that the audit can do without; if that fails, say why in its place.

    Whatever the audited code raises counts as a failure, an exit of its own too.

    Raises:
        EvidenceError: if the evidence turns out to be damaged; that is no matter of one check.
    """
    try:
        return compute()
    except EvidenceError:
        raise
    except (Exception, SystemExit) as error:
        return NotRun(reason_of(error))


def reason_of(error: BaseException) -> str:
    """An error in one line, with its place in the audited code if it passed through that."""
    if isinstance(error, AuditspecError):
        return error.message
    place = place_of(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f' at {place}' if place else ''}{f': {text}' if text else ''}"
