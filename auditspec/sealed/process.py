"""Processes for the audited code: started, and ended, without torch.

They have nothing of the code yet. Starting them early lets them import what they need while the audit checks the evidence.
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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from auditspec.artifacts.scratch import scratch
from auditspec.sealed.isolation import Wanted, environment
from auditspec.sealed.zygote import Started, taken

ARENA = 2**36
"""Bytes of address space of an arena, memory that two processes share; it is taken as it is written."""
ENDS_WITHIN = 5.0
"""Seconds in which a killed process is gone."""
MOST_OUTPUT = 2**20
"""Bytes of what the code prints that are shown."""
_GROWTH_AND_SHRINKING = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
_ADD_SEALS = 1033
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from auditspec.sealed.worker import main; main()"
)


@dataclass(frozen=True)
class Line:
    """What the audit has of one line to the code.

    Attributes:
        socket: for messages.
        arenas: descriptors of what this side writes, and of what that side writes.
        ended: how the other side ended, if it does within a second; else it is ended, where that is known.
    """

    socket: socket.socket
    arenas: tuple[int, int]
    ended: Callable[[], str]


class Process:
    """A process that forks into one for each line; they give up what they can, and wait for the code.

    It imports what the audit trusts, once for all of them, and does nothing more than wait for the first.

    Args:
        wanted: how they are to be isolated.
        read: files and folders that they may read.
        folder: where they run.
        show: told of every line that the first prints.
        lines: how many: the second is asked again what the first was asked.
    """

    def __init__(
        self,
        wanted: Wanted,
        read: Sequence[Path],
        folder: Path,
        show: Callable[[str], None],
        lines: int = 1,
    ) -> None:
        self.wanted = wanted
        self._stack = contextlib.ExitStack()
        scratches = [str(self._stack.enter_context(scratch("code"))) for _ in range(lines)]
        ours, theirs = zip(*(socket.socketpair() for _ in range(lines)), strict=True)
        arenas = [(new_arena("questions"), new_arena("answers")) for _ in range(lines)]
        self.lines = tuple(
            Line(sock, pair, (lambda: "") if number else self._ended)
            for number, (sock, pair) in enumerate(zip(ours, arenas, strict=True))
        )
        ends = [(s.fileno(), *reversed(a)) for s, a in zip(theirs, arenas, strict=True)]
        facts = {
            "read": list(map(str, read)),
            "folder": str(folder),
            "isolate": wanted != "none",
            "parent": os.getpid(),
            "scratch": scratches,
        }
        started = taken() or _started(Path(scratches[0]))
        self._process, self._pipe = started.child, started.output
        with contextlib.suppress(ConnectionError), started.line as line:
            socket.send_fds(line, [b" "], [descriptor for end in ends for descriptor in end])
            line.sendall(json.dumps(facts).encode())
        for sock in theirs:
            sock.close()
        self._printer = threading.Thread(target=_show, args=(self._pipe, show), daemon=True)
        self._printer.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def _ended(self) -> str:
        """How the first one ended, if it does within a second; else end all."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.kill()
            return ""
        return f"ended by signal {-code}" if code < 0 else f"ended itself ({code})"

    def kill(self) -> None:
        """End all at once."""
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + ENDS_WITHIN
        for line in self.lines:  # what it forked ends with it: they are gone when their lines are
            with contextlib.suppress(OSError):
                while (left := until - time.monotonic()) > 0:
                    line.socket.settimeout(left)
                    if not line.socket.recv(2**16):
                        break

    def end(self) -> None:
        """End all, and remove what they wrote."""
        for line in self.lines:  # a process that waits for a question ends by itself
            with contextlib.suppress(OSError):
                line.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        self.kill()
        self._printer.join(timeout=ENDS_WITHIN)
        self._pipe.close()
        for line in self.lines:
            line.socket.close()
            for descriptor in line.arenas:
                os.close(descriptor)
        self._stack.close()


def _started(home: Path) -> Started:
    """A process of the same program that no zygote became."""
    ours, theirs = socket.socketpair()
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(  # noqa: S603 - this Python, and its own program
        # unbuffered: what it prints is here before it is ended
        [sys.executable, "-I", "-u", "-c", _PROGRAM, root],
        stdin=theirs.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(home),
        start_new_session=True,  # no terminal of the audit's, and no Ctrl-C that is meant for that
    )
    theirs.close()
    assert process.stdout is not None  # noqa: S101 - a pipe
    return Started(process, ours, process.stdout)


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
