"""Saved checkpoints stay as they are while their run is made again, although its script may save as it once did.

What Python itself opens, renames, or deletes is refused before it happens, and so are `torch.save` and
`safetensors.torch.save_file`. What other libraries write in native code is found out afterwards.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch

from auditspec.errors import EvidenceError

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.truncate": 1, "shutil.rmtree": 1}
"""Audit events of Python (PEP 578) that change files, with how many of their arguments are paths."""
_protected: list[Path] = []


@contextmanager
def untouched(paths: Iterable[Path]) -> Iterator[None]:
    """Refuse to change files, or what lies in folders, inside the block.

    Raises:
        EvidenceError: if it is tried, or was done.
    """
    paths = [path.absolute() for path in paths]
    before = _listed(paths)
    _install()
    _protected.extend(paths)
    try:
        with (
            patch.object(torch, "save", _guarded(torch.save)),
            patch.object(safetensors.torch, "save_file", _guarded(safetensors.torch.save_file)),
        ):
            yield
    finally:
        _protected.clear()
    after = _listed(paths)
    if odd := sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p)):
        raise _refused(odd[0], "wrote")


def _listed(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Size and time of the last change of every file."""
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return {f: (f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()}


def _guarded(save: Callable[..., Any]) -> Callable[..., Any]:
    """A function that saves its first argument to its second, but not where files are to stay."""

    @wraps(save)
    def guarded(value: Any, where: Any, *args: Any, **options: Any) -> Any:
        _check(where)
        return save(value, where, *args, **options)

    return guarded


@cache
def _install() -> None:
    """Hook into the process once; an audit hook cannot be taken out again."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not _protected:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING:
            _check(args[0])
        for path in args[: CHANGING.get(event, 0)]:
            _check(path, below=event == "shutil.rmtree")

    sys.addaudithook(hook)


def _check(given: Any, *, below: bool = False) -> None:
    """Refuse a path that is one of those that stay, or lies in one; with `below` also one that holds one.

    Raises:
        EvidenceError: naming it.
    """
    if not isinstance(given, str | bytes | os.PathLike):
        return  # a descriptor, or an open file
    path = Path(os.path.abspath(os.fsdecode(given)))  # noqa: PTH100 - no look at the disk
    for place in _protected:
        if path.is_relative_to(place) or (below and place.is_relative_to(path)):
            raise _refused(path, "writes")


def _refused(path: Path, verb: str) -> EvidenceError:
    return EvidenceError(
        f"{path}: the code that trains again {verb} where the run's checkpoints lie",
        "let it save elsewhere, or not at all, where it is given a recorder",
    )
