"""Which files a code bundle's functions open, each with the outermost of them on whose behalf it was opened."""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType

from auditspec.artifacts.reads import Reads


class CodeReads(Reads):
    """Watches for files that the code opens.

    Args:
        sources: absolute paths of its source files, whose frames tell its reads from others'.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        super().__init__(self._on_behalf)
        self._sources = frozenset(sources)

    def _on_behalf(self, frame: FrameType) -> str | None:
        """The outermost function of the code that reads, by its name there; None: somebody else reads."""
        outermost = None
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_filename in self._sources:
                outermost = caller.f_code.co_name
            caller = caller.f_back
        return outermost
