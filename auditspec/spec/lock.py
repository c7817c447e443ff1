"""The lock file: digests of artifacts that the spec does not pin itself, written by `digest --lock`.

For `audit.yaml` it is `audit.lock.json`:

    {"auditspec_lock": "1", "digests": {"record": "sha256:..."}}
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from auditspec.errors import Problem, SpecError
from auditspec.frozen import Frozen
from auditspec.spec.models import Digest, Name
from auditspec.spec.source import LoadedSpec, in_order, read_file
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Node, read
from auditspec.spec.validation import validate

LOCK_SUFFIX = ".lock.json"


class Lock(Frozen):
    """The lock file, version 1."""

    auditspec_lock: Literal["1"] = "1"
    digests: dict[Name, Digest]
    """Digest of each artifact that the spec itself does not pin."""
    rows: dict[Name, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Rows of those that are tables, so that a change can be told in words."""


@dataclass(frozen=True)
class Pin:
    """The digest that an artifact must have."""

    digest: str
    pinned_in: str
    """Name of the file that says so: the spec or its lock."""


def lock_path(spec_path: Path) -> Path:
    """Where the lock of a spec lies."""
    return spec_path.with_suffix(LOCK_SUFFIX)


def read_lock(spec_path: Path) -> Lock:
    """A spec's lock file; one without digests where there is no such file.

    Raises:
        SpecError: if the file is not a lock, or a digest is malformed.
        UsageError: if the file cannot be read.
    """
    tree = _read(lock_path(spec_path))
    return Lock(digests={}) if tree is None else tree[1]


def encode_lock(digests: Mapping[str, str | None], rows: Mapping[str, int] | None = None) -> bytes:
    """The content of a lock file.

    Raises:
        ValidationError: if a name or digest is malformed.
    """
    content = {"digests": dict(sorted(digests.items()))}
    counted = {"rows": dict(sorted(rows.items()))} if rows else {}
    lock = Lock.model_validate(content | counted)
    stored = lock.model_dump(exclude=None if lock.rows else {"rows"})
    return (json.dumps(stored, indent=2) + "\n").encode()


def write_lock(
    spec_path: Path, digests: Mapping[str, str], rows: Mapping[str, int] | None = None
) -> Path:
    """Write a spec's lock file, whole or not at all, and return its path.

    Raises:
        ValidationError: if a name or digest is malformed.
        OSError: if the folder cannot be written.
    """
    path = lock_path(spec_path)
    text = encode_lock(digests, rows)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    return path


def own_pins(loaded: LoadedSpec) -> dict[str, Pin]:
    """The digests that the spec pins itself."""
    return {
        name: Pin(artifact.digest, loaded.path.name)
        for name, artifact in loaded.spec.artifacts.items()
        if artifact.digest is not None
    }


def pins(loaded: LoadedSpec) -> dict[str, Pin]:
    """The digest of every artifact that the spec or its lock pins.

    Raises:
        SpecError: if the lock is malformed, names an artifact that the spec does not have, or
            contradicts the spec.
        UsageError: if the lock cannot be read.
    """
    artifacts = loaded.spec.artifacts
    pinned = own_pins(loaded)
    path = lock_path(loaded.path)
    tree = _read(path)
    if tree is None:
        return pinned
    root, lock = tree
    problems = []
    for name, digest in lock.digests.items():
        node = root.nearest(("digests", name))
        if name not in artifacts:
            message = f"the spec has no artifact {name!r}"
            hint = did_you_mean(name, artifacts, "artifacts")
            problems.append(Problem("AS050", message, str(path), *node.key_place, hint))
        elif pinned.setdefault(name, Pin(digest, path.name)).digest != digest:
            message = f"the digest of {name!r} contradicts {loaded.path.name}"
            hint = "remove one of them, or write the lock again: auditspec digest --lock"
            problems.append(Problem("AS051", message, str(path), *node.place, hint))
    if problems:
        raise SpecError(in_order(problems))
    return pinned


def _read(path: Path) -> tuple[Node, Lock] | None:
    if not os.path.lexists(path):
        return None
    root, problems = read(read_file(path), str(path))
    lock = None
    if root is not None:
        lock, wrong_fields = validate(root, Lock, str(path))
        problems += wrong_fields
    if root is None or lock is None or problems:
        raise SpecError(in_order(problems))
    return root, lock
