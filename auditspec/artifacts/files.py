"""Opening and writing files so that what was checked is what is used.

A file is opened once, without following a link in its last component, and only if it is a regular
file: a FIFO or device would block or never end. Everything else reads from that descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from auditspec.errors import EvidenceError, UsageError

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; the caller closes it.

    Raises:
        EvidenceError: if there is no such file, it is a link or not a regular file, or it cannot be
            read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EvidenceError(
            f"{path}: not a regular file", "name a file; folders are listed, nothing else is read"
        )
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        EvidenceError: as `open_regular`, or if reading fails.
    """
    with open_regular(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise EvidenceError(f"{path}: cannot be read ({error.strerror})") from None


def only_ours(descriptor: int) -> bool:
    """Whether nobody but this user, and the system's own, may write to an open file."""
    status = os.fstat(descriptor)
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def write_atomically(
    path: Path,
    data: bytes | Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    overwrite: bool = True,
    durable: bool = True,
    around: Path | None = None,
) -> None:
    """Write a file so that nobody, even if the writer is killed, sees half of it.

    Of several parts, one follows the other. With `durable` the same holds for a power failure, at the price of waiting for the disk. `around` is where it is
    written first, by default beside its place.

    Raises:
        FileExistsError: if the file is there and `overwrite` is False.
        OSError: if the folder cannot be written.
    """
    temporary = (around or path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, refuses a name that is taken
    finally:
        temporary.unlink(missing_ok=True)


def exchanged(one: Path, other: Path) -> bool:
    """Swap two names at one moment (Linux's `renameat2`); False where the system cannot.

    Raises:
        OSError: if a name is missing, or may not be changed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure.

    Raises:
        OSError: if it cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_or_refuse(path: Path, data: bytes) -> None:
    """`write_atomically`, for a file that a user named.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def write_into(folder: Path, name: str, data: bytes) -> None:
    """`write_or_refuse`, for a folder that is closed: a killed writer leaves nothing in it that does not belong there.

    Raises:
        UsageError: if it cannot be written.
    """
    place = folder.absolute()
    try:
        write_atomically(place / name, data, around=place.parent)
    except OSError:  # another file system, or one's own is the folder only
        write_or_refuse(place / name, data)


def _cannot_open(path: Path, error: OSError | ValueError) -> EvidenceError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return EvidenceError(f"{path}: no such file", "check the path, or restore the file")
    if path.is_symlink():
        return EvidenceError(
            f"{path}: is a symbolic link, and evidence is never read through links",
            "name the file that it points to, or copy it here",
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return EvidenceError(f"{path}: cannot be opened ({reason})", "check its type and permissions")
