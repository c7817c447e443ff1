"""What a packet is held against belongs to whoever verifies, and never lies inside the packet."""

from __future__ import annotations

import os
from pathlib import Path

from auditspec.errors import UsageError


def require_outside(packet: Path, path: Path, what: str) -> None:
    """Refuse a file or folder of the verifier's that lies inside the packet, however it is spelled.

    Places are compared by device and inode, along the path as it is written and along the one that its
    links lead to: other spellings, letter case, links to folders, mounts, and hard links are seen through.

    Args:
        packet: the packet's folder.
        path: what the packet is to be held against; it need not exist.
        what: what it is, for the error.

    Raises:
        UsageError: if it lies inside.
    """
    inside = _identity(packet)
    if inside is None:
        return
    written, real = path.absolute(), Path(os.path.realpath(path))
    around = {_identity(place) for start in (written, real) for place in (start, *start.parents)}
    if inside in around or (path.is_file() and _identity(real) in _files(packet)):
        raise UsageError(
            f"{path}: {what} lies inside the packet, which would vouch for itself",
            "get it from its author by another way than the packet, and keep it elsewhere",
        )


def _files(packet: Path) -> set[tuple[int, int] | None]:
    try:
        return {_identity(entry) for entry in packet.iterdir()}
    except OSError:
        return set()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None where there is nothing."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
