"""Messages in tests: what they say, and ones that say anything."""

from __future__ import annotations

from collections.abc import Iterable

from auditspec.messages import Message, message
from auditspec.report.words import text


def said(messages: Message | Iterable[Message]) -> str:
    """Messages as one plain text."""
    return text(messages)


def each_said(messages: Iterable[Message]) -> list[str]:
    """Messages as plain texts."""
    return [text(one) for one in messages]


def saying(words: str) -> Message:
    """A message that says just this."""
    return message("check-line-bare", subject=words)
