"""How long work reports that it goes on: a small interface that knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Opens a named phase of `total` units; the phase is advanced by calling what it yields."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Report on one phase; `total` is None where the length is unknown."""
        ...


class Silent:
    """Reports nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Say nothing."""
        yield lambda amount: None


SILENT = Silent()
