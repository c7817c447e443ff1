"""Files that the training process reads while it is recorded, for the record's header."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from auditspec.artifacts.digest import digest_file
from auditspec.artifacts.named_files import named_files
from auditspec.artifacts.reads import Reads
from auditspec.artifacts.scratch import PREFIX
from auditspec.errors import EvidenceError
from auditspec.record.format import FileRead

Place = Literal["factory", "extend", "training", "named"]
PLACES: tuple[Place, ...] = ("factory", "extend", "training", "named")
MOST_HASHED = 2**30
"""Largest file that is hashed, in bytes."""
MOST_LISTED = 1000
"""Most files that a record lists."""


class TrainingReads:
    """Notes what is read from now on, and in which part of the training.

    Args:
        record: the record's folder, whose own files are left out.
    """

    def __init__(self, record: Path) -> None:
        self._record = record.absolute()
        self._place: Place | None = "training"
        self._known: dict[str, FileRead] = {}
        self._reads = Reads(lambda frame: self._place)
        self._reads.start()

    def add(self, files: Iterable[FileRead]) -> None:
        """Take over what a record that is resumed lists already."""
        self._known = {file.path: file for file in files} | self._known

    def stop(self) -> None:
        """Watch no more."""
        self._reads.stop()

    @contextmanager
    def during(self, place: Place | None) -> Iterator[None]:
        """What is read inside is read there; None: it is the recorder's own reading."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def name(self, function: Callable[..., Any]) -> None:
        """Note the files that a function or class names which builds or changes a model."""
        source = inspect.getsourcefile(inspect.unwrap(function))
        if source is None:
            return
        for path in named_files(function, [source], [Path.cwd(), Path(source).parent]):
            self._reads.found.setdefault(str(path), set()).add("named")

    def files(self, data: Iterable[Path]) -> tuple[FileRead, ...]:
        """Every file so far, as it was when it was first listed; modules of the process are code.

        Args:
            data: the data sets' files and folders, which the record names otherwise.
        """
        own = [self._record, *(path.absolute() for path in data)]
        code = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
        for full, by in self._reads.files().items():
            path = Path(full)
            passing = any(part.startswith(PREFIX) for part in path.parts)
            if full in code or passing or any(path.is_relative_to(folder) for folder in own):
                continue
            here = Path.cwd()
            name = path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
            if name in self._known or len(self._known) < MOST_LISTED:
                with self.during(None):
                    self._known[name] = _listed(name, path, by, self._known.get(name))
        return tuple(self._known.values())


def _listed(name: str, path: Path, by: set[str], before: FileRead | None) -> FileRead:
    places = tuple(p for p in PLACES if p in by or (before is not None and p in before.by))
    if before is not None:
        return before.model_copy(update={"by": places})
    digest = size = None
    try:
        size = path.stat().st_size
        if size <= MOST_HASHED:
            digest, size = digest_file(path.resolve())
    except (OSError, EvidenceError):
        pass  # gone, or not to be read: the name is what is left
    return FileRead(path=name, digest=digest, size=size, by=places)
