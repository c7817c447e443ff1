"""Which files a piece of code opens for reading, from Python's own audit events (PEP 578).

What a library opens in native code makes no such event (safetensors, Arrow, `torch.from_file`), nor
does another process. Python's own files are left out: its library, installed packages, archives that it
imports from, shared objects, and the kernel's.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakSet

KERNEL = ("/proc/", "/dev/", "/sys/", "/usr/share/zoneinfo/")
NOT_DATA = (".pyc", ".so", ".pyd", ".dll", ".dylib")

Reason = Callable[[FrameType], str | None]
"""(the frame that opens a file) -> on whose behalf; None where it does not matter."""


class Reads:
    """Notes files that are opened for reading while it watches.

    Args:
        reason: tells on whose behalf a file is opened.
    """

    def __init__(self, reason: Reason) -> None:
        self._reason = reason
        self.found: dict[str, set[str]] = {}
        """Absolute path of each file, with the reasons for which it was opened."""
        self._made: set[str] = set()

    def start(self) -> None:
        """Watch from now on."""
        _install()
        _watching.add(self)

    def stop(self) -> None:
        """Watch no more; to stop twice is no error."""
        _watching.discard(self)

    @contextmanager
    def watching(self) -> Iterator[Reads]:
        """Watch inside the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def files(self) -> dict[str, set[str]]:
        """Those of `found` that are regular files now, or are gone."""
        return {p: by for p, by in self.found.items() if Path(p).is_file() or not Path(p).exists()}

    def opened(self, path: Any, mode: Any, flags: Any, frame: FrameType) -> None:
        """Note an event `open`; what the process itself wrote tells it nothing new."""
        full = _absolute(path)
        if full is None or full in self._made:
            return
        if isinstance(flags, int) and flags & (os.O_TRUNC | os.O_EXCL):
            self._made.add(full)
            return
        if not _reading(mode, flags) or full.endswith(NOT_DATA):
            return
        if full.startswith((*KERNEL, *_installed())):
            return
        if not os.path.exists(full):  # noqa: PTH110 - nothing is read of what is not there
            return
        if (by := self._reason(frame)) is not None:
            self.found.setdefault(full, set()).add(by)

    def renamed(self, source: Any, target: Any) -> None:
        """Note an event `os.rename`."""
        before, after = _absolute(source), _absolute(target)
        if before in self._made and after is not None:
            self._made.add(after)


_watching: WeakSet[Reads] = WeakSet()


@cache
def _install() -> None:
    """Hook into the process once; an audit hook cannot be taken out again."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and _watching:
            path, mode, flags = args
            frame = sys._getframe(1)
            for reads in tuple(_watching):
                reads.opened(path, mode, flags, frame)
        elif event == "os.rename" and _watching:
            for reads in tuple(_watching):
                reads.renamed(args[0], args[1])

    sys.addaudithook(hook)


@cache
def _installed() -> tuple[str, ...]:
    """Folders of Python's library, of installed packages, and of this one; its library in an archive."""
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders.add(str(Path(__file__).parents[1]))
    archives = [path for path in sys.path if path.endswith(".zip")]
    return (*(folder.rstrip(os.sep) + os.sep for folder in sorted(folders)), *archives)


def _absolute(path: Any) -> str | None:
    if not isinstance(path, str | bytes | os.PathLike):
        return None  # a descriptor, opened before
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - no look at the disk


def _reading(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return "r" in mode or "+" in mode
    access = flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else 0
    return access != os.O_WRONLY
