"""Where auditspec keeps what belongs to this user: XDG folders, unless the environment names others."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Finished estimates: AUDITSPEC_CACHE, else `auditspec` in the user's cache folder."""
    return _folder("AUDITSPEC_CACHE", "XDG_CACHE_HOME", ".cache")


def state_folder() -> Path:
    """Logs that this user's verifier saw: AUDITSPEC_STATE, else `auditspec` in the user's state folder."""
    return _folder("AUDITSPEC_STATE", "XDG_STATE_HOME", ".local/state")


def _folder(own: str, base: str, default: str) -> Path:
    if folder := os.environ.get(own):
        return Path(folder)
    return Path(os.environ.get(base) or Path.home() / default) / "auditspec"
