"""Secrets: files that only their owner can use, and passphrases that somebody is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError, UsageError

Ask = Callable[[str], bytes]
"""Gives the passphrase, or PIN, of what the text names."""
LONGEST = 4096
"""Bytes of a passphrase."""


def nobody(what: str) -> NoReturn:
    """Ask nobody.

    Raises:
        UsageError: always, with how to hand a passphrase over.
    """
    raise UsageError(
        f"{what} needs a passphrase or PIN, and there is nobody to ask",
        "run the command on a terminal, or hand it over on a descriptor: --passphrase-fd 3 3<FILE",
    )


def read_confidential(path: Path) -> bytes:
    """The bytes of a file that nobody but its owner can use.

    Raises:
        UsageError: if it cannot be read, or its group or others have any right to it.
    """
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read()
    except EvidenceError as error:
        raise UsageError(error.message, error.remedy) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    public = (
        b"PUBLIC KEY" in data and b"PRIVATE" not in data
    )  # no secret: another mistake, told by the caller
    if mode & 0o077 and not public:
        raise UsageError(
            f"{path}: others than its owner can use it (mode {mode:04o})",
            f"chmod 600 {path}; whoever could read it may have done so: consider a new one",
        )
    return data


def from_descriptor(descriptor: int) -> bytes:
    """The first line of what a descriptor gives, which nobody can read from it again.

    Raises:
        UsageError: if the descriptor is not open, or its first line is empty or too long.
    """
    where = f"--passphrase-fd {descriptor}"
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            line = file.readline(LONGEST + 1)
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), descriptor, inheritable=False)
    except OSError as error:
        raise UsageError(
            f"{where}: cannot be read ({error.strerror})", "open it: --passphrase-fd 3 3<FILE"
        ) from None
    passphrase = line.rstrip(b"\r\n")
    if not passphrase or len(line) > LONGEST:
        raise UsageError(f"{where}: its first line is no passphrase (1 to {LONGEST} bytes)")
    return passphrase
