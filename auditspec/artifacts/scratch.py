"""Folders for a while: what a killed process left is removed by the next one that needs such a folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditspec.artifacts.locks import hold, is_abandoned

PREFIX = "auditspec-scratch-"
_OURS = re.compile(re.escape(PREFIX) + r"[a-z-]+-(\d+)-[a-z0-9_]{8}")
"""Names say what a folder is for, and whose process it is."""


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A folder for its user only, among the system's temporary ones, until the block is left.

    Args:
        purpose: a word for its name.

    Raises:
        OSError: if it cannot be made.
    """
    _clean_up_after_the_dead(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-{os.getpid()}-"))
    with contextlib.ExitStack() as stack:
        hold(folder, stack)
        try:
            yield folder
        finally:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, however deep that is and whoever may read it; as far as it can be."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
        numbers = itertools.count()
        while entries := [*folder.iterdir()]:
            for entry in entries:
                if _is_folder(entry):
                    _lift(entry, numbers)
                else:
                    entry.unlink()
        folder.rmdir()


def _lift(inner: Path, numbers: Iterator[int]) -> None:
    """Put what is in a folder beside it, and remove it: depth costs no recursion."""
    inner.chmod(0o700)
    for entry in inner.iterdir():
        if _is_folder(entry):
            entry.chmod(0o700)
        free = (inner.with_name(f"{n}.lifted") for n in numbers)
        entry.rename(next(path for path in free if not os.path.lexists(path)))
    inner.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clean_up_after_the_dead(around: Path) -> None:
    """Remove this user's folders of processes that are gone."""
    for folder in around.iterdir():
        match = _OURS.fullmatch(folder.name)
        with contextlib.suppress(OSError):  # another run removes it meanwhile
            if (
                match
                and _is_folder(folder)
                and folder.stat().st_uid == os.getuid()
                and is_abandoned(folder, int(match[1]))
            ):
                remove(folder)
