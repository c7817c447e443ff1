"""A process for the audited code: started, and ended, without torch.

It has nothing of the code yet. Starting it early lets it import what it needs while the audit checks the evidence.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from auditspec.artifacts.scratch import scratch
from auditspec.sealed.isolation import Wanted, environment

ARENA = 2**36
"""Bytes of address space of an arena, memory that two processes share; it is taken as it is written."""
MOST_OUTPUT = 2**20
"""Bytes of what the code prints that are shown."""
_GROWTH_AND_SHRINKING = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
_ADD_SEALS = 1033
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from auditspec.sealed.worker import main; main(sys.argv[2:])"


class Process:
    """A process that gives up what it can, and waits for the code.

    Args:
        wanted: how it is to be isolated.
        read: files and folders that it may read.
        folder: where it runs.
        show: told of every line that it prints.
    """

    def __init__(
        self, wanted: Wanted, read: Sequence[Path], folder: Path, show: Callable[[str], None]
    ) -> None:
        self.wanted = wanted
        self.arenas = new_arena("questions"), new_arena("answers")
        """Descriptors of what this side writes, and of what that side writes."""
        self.line, theirs = socket.socketpair()
        self._stack = contextlib.ExitStack()
        own = self._stack.enter_context(scratch("code"))
        passed = [theirs.fileno(), *reversed(self.arenas)]
        facts = {
            "read": list(map(str, read)),
            "scratch": str(own),
            "folder": str(folder),
            "isolate": wanted != "none",
        }
        root = str(Path(__file__).parents[2])
        arguments = [root, *map(str, passed), str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 - this Python, and its own program
            # unbuffered: what it prints is here before it is ended
            [sys.executable, "-I", "-u", "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=passed,
            env=environment(own),
            start_new_session=True,  # no terminal of the audit's, and no Ctrl-C that is meant for that
        )
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(facts).encode())
        theirs.close()
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        self._pipe = self._process.stdout
        self._printer = threading.Thread(target=_show, args=(self._pipe, show), daemon=True)
        self._printer.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ended(self) -> str:
        """How it ended, if it does within a second; else end it."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.kill()
            return ""
        return f"ended by signal {-code}" if code < 0 else f"ended itself ({code})"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it, and remove what it wrote."""
        self.kill()
        self._printer.join(timeout=5)
        self._pipe.close()
        self.line.close()
        for descriptor in self.arenas:
            os.close(descriptor)
        self._stack.close()


def printable(text: object) -> str:
    """A text of the process's, without control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text))


def new_arena(name: str) -> int:
    """A descriptor of shared memory that neither side can shrink or grow."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, ARENA)
    fcntl.fcntl(descriptor, _ADD_SEALS, _GROWTH_AND_SHRINKING)
    return descriptor


def _show(pipe: IO[bytes], show: Callable[[str], None]) -> None:
    """Pass on what the process prints, line by line."""
    left = MOST_OUTPUT
    while line := pipe.readline(4096):
        if left > 0:
            show(printable(line.decode(errors="replace").rstrip("\n").expandtabs()))
            left -= len(line)
            if left <= 0:
                show("\u2026 what it prints from here on is not shown")
