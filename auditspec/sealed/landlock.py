"""Files that the audited code's process may use: rules of the Linux kernel (landlock(7))."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_FIRST_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files a version of the interface knows."""
_TCP = 0b11
_SCOPED = 0b11
"""Abstract sockets, and signals, of this process's own domain only (version 6)."""


def version() -> int:
    """Version of the kernel's interface; 0 where it has none."""
    found = int(_libc().syscall(_CREATE, None, 0, 1))
    return max(found, 0)


def restrict(read: Iterable[Path], write: Iterable[Path]) -> bool:
    """Give up all files but some, all connections, and signals to others, for this thread and those that it starts.

    `no_new_privs` must be set.

    Args:
        read: files and folders that may be read; those that are not there are left out.
        write: those that may be changed, too.

    Returns:
        Whether the kernel does it.
    """
    known = version()
    if not known:
        return False
    rights = (1 << _FIRST_RIGHTS[min(known, 5)]) - 1
    attributes = struct.pack("QQQ", rights, _TCP, _SCOPED)[
        : 24 if known >= 6 else 16 if known >= 4 else 8
    ]
    libc = _libc()
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = libc.syscall(_CREATE, buffer, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for paths, allowed in ((read, _READ_FILE | _READ_DIR | _EXECUTE), (write, rights)):
            for path in paths:
                _allow(libc, ruleset, path, allowed & rights)
        return bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        libc.syscall(_ADD, ruleset, 1, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
