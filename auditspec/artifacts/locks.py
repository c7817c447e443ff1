"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditspec.errors import UsageError

FILE = ".lock"
"""What is locked where a file system (NFS) locks no folders."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else holds the folder, and hold it.

    The lock is advisory (`flock`), and on the folder itself, so that it leaves no file behind. The system lets go
    of it when its holder ends, however it ends.

    Raises:
        OSError: if the folder is not there, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(_opened(folder, stack), fcntl.LOCK_EX)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(folder / FILE, flags, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for whoever reads and writes something there again at the same time, so that nothing of either is lost.

    Raises:
        UsageError: if the folder is not there, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
        yield


def hold(folder: Path, stack: contextlib.ExitStack) -> None:
    """Hold a folder that is nobody else's until the stack is left; without effect where folders have no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(_opened(folder, stack), fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(folder: Path) -> bool:
    """Whether a process, here or on another machine or container that sees the folder, holds it."""
    with contextlib.ExitStack() as stack:
        try:
            fcntl.flock(_opened(folder, stack), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def is_abandoned(folder: Path, pid: int) -> bool:
    """Whether the process that a folder belongs to is gone.

    A process that is not seen here may live in another container: it holds its folder.
    """
    return not _alive(pid) and not is_held(folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's process, or no process id: not ours to judge
    return True


def _opened(folder: Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor
