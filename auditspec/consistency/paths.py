"""Paths that lead astray: the pinned bytes are there, under another name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from auditspec.artifacts.manifest import digest_path
from auditspec.consistency.inquiry import Inquiry
from auditspec.errors import EvidenceError
from auditspec.record.format import HEADER
from auditspec.results import Evidence
from auditspec.spec.suggest import nearest
from auditspec.urls import is_url

MOST_FILES, MOST_BYTES = 64, 2**30
"""Neighbours of a file that are hashed in search of pinned bytes: how many, and of what size together."""


def check_paths(inquiry: Inquiry) -> None:
    """Note artifacts whose path is wrong.

    A file that is not there although another of a similar name is, and that nothing pins or whose
    pinned bytes that other holds, was misspelled. Where something else lies at the path, and the
    pinned bytes lie at another artifact's path or beside it, the spec names the wrong file; so it does
    where two artifacts with different pins have one path.
    """
    for item in inquiry.evidence.values():
        found = None if is_url(item.path) else _elsewhere(inquiry, item)
        if found is None:
            continue
        what = "no such file or folder" if item.state == "missing" else "not the pinned bytes"
        inquiry.fault(
            "AS046",
            f"artifact {item.name!r}: {item.path}: {what}",
            ("artifacts", item.name, "path"),
            "another artifact has this path"
            if not found
            else f"did you mean {found!r}?"
            if item.expected is None
            else f"the pinned bytes lie at {found}",
            key=True,
        )


def _elsewhere(inquiry: Inquiry, item: Evidence) -> str | None:
    """The path, relative to the spec's folder, that was meant; empty where it is unknown; else None."""
    folder = inquiry.loaded.path.parent
    if item.state == "missing":
        alike = similar(folder, item.path)
        if alike is None or item.expected in (None, _digest(folder / alike)):
            return alike
        return None
    if item.state != "mismatched" or item.found in (None, item.expected):
        return None
    for other in inquiry.evidence.values():
        if other.found == item.expected:
            return other.path
    if any(o.path == item.path and o.name != item.name for o in inquiry.evidence.values()):
        return ""
    for path in (*_neighbours(folder / item.path), *_records(folder / item.path)):
        if _digest(path) == item.expected:
            return path.relative_to(folder).as_posix()
    return None


def similar(folder: Path, path: str) -> str | None:
    """An existing path that is like one that does not exist, part by part; None where none is."""
    found = folder
    for part in Path(path).parts:
        step = found / part
        if not os.path.lexists(step):
            names = [p.name for p in found.iterdir()] if found.is_dir() else []
            alike = nearest(part, names)
            if alike is None:
                return None
            step = found / alike
        found = step
    return found.relative_to(folder).as_posix()


def _neighbours(path: Path) -> Iterator[Path]:
    files = sorted(p for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file())
    size = 0
    for other in files[:MOST_FILES]:
        size += other.stat().st_size
        if size > MOST_BYTES:
            return
        yield other


def _records(path: Path) -> Iterator[Path]:
    """Records inside a folder and beside it."""
    if path.is_dir():
        for folder in (path, path.parent):
            yield from sorted(p.parent for p in folder.glob(f"*/{HEADER}"))


def _digest(path: Path) -> str | None:
    try:
        return digest_path(path).digest
    except EvidenceError:
        return None
