"""A process that imported what the audit trusts, knows nothing else, and waits to fork into those for the audited code: a zygote.

Importing torch costs as much as the rest of a small audit without its report. So that it is done once, the command
line begins twice. Once it knows that code will be executed, it executes itself again, with an environment that holds what
processes start by and libraries compute by, and with the variables of its own in a file that is nowhere but in memory. In an
address space that holds nothing of the first, it imports, forks the zygote, and only then reads them, and whatever else it works on.
"""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Protocol

from auditspec.sealed.isolation import passed_on

_VARIABLES = "AUDITSPEC_VARIABLES"
"""Names the descriptor of the file that holds the environment."""
_STARTED_BY = ("HOME", "GLIBC_TUNABLES", "LD_", "PYTHON")
"""What a process starts by, besides what libraries compute by."""
_restartable: list[bool] = []
_waiting: list[Started] = []


class Child(Protocol):
    """A process of ours, as `subprocess.Popen` has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """How it ended: a negative number is a signal's; `subprocess.TimeoutExpired` if it does not in time."""

    def kill(self) -> None:
        """End it."""


@dataclass(frozen=True)
class Started:
    """A process that waits to be told what to fork into.

    Attributes:
        child: the process.
        line: where it is told.
        output: what it and the first of its forks print.
    """

    child: Child
    line: socket.socket
    output: IO[bytes]


def begin() -> None:
    """Where the command line begins; the second time it imports, forks, and takes its environment back."""
    descriptor = os.environ.pop(_VARIABLES, None)
    if descriptor is None:
        _restartable.append(True)
        return
    from auditspec.sealed import worker

    worker.import_trusted()
    _waiting.append(_fork(worker.main))
    with os.fdopen(int(descriptor), "rb") as file:
        pairs = [pair.partition(b"=") for pair in file.read().split(b"\0") if pair]
    os.environb.clear()
    os.environb.update({name: value for name, _, value in pairs})


def begin_again() -> None:
    """Let a command line that has read nothing yet begin a second time, if it can; else nothing happens.

    It can on Linux, where `begin` was called, and Python was not told what to do with warnings: the code would be.
    """
    if not _restartable or sys.platform != "linux" or sys.warnoptions or not sys.executable:
        return
    kept = {n: v for n, v in os.environ.items() if n.startswith(_STARTED_BY)}
    with suppress(OSError):  # of a kernel that has not got what this takes
        os.close(os.pidfd_open(os.getpid()))
        file = os.memfd_create("environment", 0)  # inherited
        os.write(file, b"\0".join(name + b"=" + value for name, value in os.environb.items()))
        os.lseek(file, 0, os.SEEK_SET)
        environment = passed_on() | kept | {_VARIABLES: str(file)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - itself


def taken() -> Started | None:
    """The zygote, once."""
    return _waiting.pop() if _waiting else None


class _Fork:
    """A child that is no other program."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("zygote", timeout or 0)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._descriptor)
        return self._code

    def kill(self) -> None:
        if self._code is None:
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def _fork(main: Callable[[], None]) -> Started:
    """Fork a process that has of this one's descriptors none, and of its terminal nothing."""
    ours, theirs = socket.socketpair()
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        for target, source in enumerate((theirs.detach(), writable, writable)):
            os.dup2(source, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.argv[:] = ["-c"]
        sys.stdout, sys.stderr = (_unbuffered(descriptor) for descriptor in (1, 2))
        try:
            main()
        except BaseException:
            traceback.print_exc()
        finally:  # never on into what is the audit's
            os._exit(1)
    theirs.close()
    os.close(writable)
    return Started(_Fork(pid), ours, os.fdopen(readable, "rb"))


def _unbuffered(descriptor: int) -> io.TextIOWrapper:
    """As with `python -u`."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)
