"""Places in a store, as fsspec writes them: `s3://bucket/run`."""

from __future__ import annotations

import os

SCHEMES = ("s3", "gs", "file", "memory")
"""Stores that are read and written: S3, Google Cloud Storage, another folder, this process (for tests)."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in a store, not a path."""
    return "://" in os.fspath(place)


def fault(url: str) -> str:
    """Why a URL names no place in a store that is used; empty where it does."""
    scheme, _, place = url.partition("://")
    if scheme not in SCHEMES:
        return f"a store is one of {', '.join(f'{name}://' for name in SCHEMES)}"
    parts = place.removeprefix("/" if scheme == "file" else "").removesuffix("/").split("/")
    if "@" in parts[0] or "::" in url:
        return "credentials and chains of stores have no place in a URL"
    if any(not p or p.startswith(".") or "\\" in p or not p.isprintable() for p in parts):
        return "its parts are plain, visible names, with '/' between them"
    if scheme in ("s3", "gs") and len(parts) < 2:
        return "it names a bucket, and what lies in it"
    if scheme == "file" and not place.startswith("/"):
        return "a file's URL is file:///folder/file"
    return ""


def as_path(place: str | os.PathLike[str]) -> str:
    """The path that a `file://` URL names; every other place as it stands."""
    return os.fspath(place).removeprefix("file://")


def last_part(url: str) -> str:
    """The name of the file or folder."""
    return url.rstrip("/").rpartition("/")[2]
