"""Digests: `sha256:` and 64 hex digits, always of bytes that were really read."""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path
from typing import Any

import rfc8785

from auditspec.artifacts.files import open_regular, read_regular
from auditspec.errors import EvidenceError


def digest_bytes(data: bytes) -> str:
    """The digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> tuple[str, int]:
    """The digest and the size in bytes of a regular file, streamed from one descriptor.

    Raises:
        EvidenceError: if the file is missing, a link, not regular, or cannot be read.
    """
    with open_regular(path) as file:
        return digest_open(file, path), file.tell()


def digest_open(file: BufferedReader, path: Path) -> str:
    """The digest of an open file from where it stands, streamed; `path` names it in errors.

    Raises:
        EvidenceError: if it cannot be read.
    """
    try:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read ({error.strerror})") from None


def read_verified(path: Path, expected: str | None) -> bytes:
    """The bytes of a regular file, after checking that exactly these bytes have the pinned digest.

    Nothing is opened a second time, so a file that is swapped after the check changes nothing.
    With `expected=None` nothing is compared.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, or not what `expected` says.
    """
    data = read_regular(path)
    if expected is not None:
        check(path, expected, digest_bytes(data))
    return data


def check(path: Path, expected: str, found: str) -> None:
    """Compare a digest with the pinned one.

    Raises:
        EvidenceError: if they differ.
    """
    if found != expected:
        raise EvidenceError(
            f"{path}: digest is {found}, pinned is {expected}",
            "restore the pinned bytes, or pin the new ones if the change is intended",
        )


def canonical_json(value: Any) -> bytes:
    """The one RFC 8785 encoding of a JSON value: equal values give equal bytes.

    Raises:
        rfc8785.CanonicalizationError: for what JSON cannot carry exactly: NaN, infinities, integers
            beyond 2^53, lone surrogates, keys that are not strings.
    """
    return rfc8785.dumps(value)
