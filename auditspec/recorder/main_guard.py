"""Training code that trains when it is imported: an audit, and a self-check, would train again."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from auditspec.errors import RecordError
from auditspec.recorder.causes import cause
from auditspec.recorder.question import INSIDE


class TrainsOnImportError(RecordError):
    """A recorder was made while the training code was imported for a check."""


def refuse_training_on_import(*functions: Callable[..., Any] | None) -> None:
    """Refuse a script that trains without asking whether it is the one that was started.

    Args:
        functions: of the training code; whether they stand in the script that was started matters.

    Raises:
        TrainsOnImportError: if this is a self-check, or the script would train when it is imported.
    """
    inside = bool(os.environ.get(INSIDE))
    ours = any(getattr(f, "__module__", None) == "__main__" for f in functions)
    if inside or (ours and any(not _guarded(path, line) for path, line in _lines_of_main())):
        found = cause("trains-on-import")
        raise TrainsOnImportError(found.message, found.remedy)


def _lines_of_main() -> Iterator[tuple[Path, int]]:
    """Lines of the script that was started, outside its functions, which this thread is in."""
    frame = sys._getframe()
    while frame is not None:
        names = frame.f_globals.get("__name__"), frame.f_code.co_name
        path = Path(frame.f_code.co_filename)
        if names == ("__main__", "<module>") and path.is_file():
            yield path, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _guarded(path: Path, line: int) -> bool:
    """Whether a line of a module stands under `if __name__ == "__main__"`."""
    for statement in ast.parse(path.read_bytes()).body:
        if statement.lineno <= line <= (statement.end_lineno or 0):
            return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
    return True
