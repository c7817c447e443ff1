"""Plug-ins: classes of other distributions that stand beside the built-in ones, kind by kind.

A distribution offers a class under an entry point of the group `auditspec.KIND`, named as the class
names itself::

    [project.entry-points."auditspec.checks"]
    my-check = "my_package.checks:MyCheck"

Plug-ins run with the rights of the auditor, so what each one is (distribution, version, digest of its
code) stands in the results. One that cannot be loaded is an error, never skipped.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

from auditspec.errors import AuditspecError, UsageError

Kind = Literal[
    "metrics",
    "statistics",
    "checks",
    "estimators",
    "exports",
    "sections",
    "update_rules",
    "engines",
    "signers",
]
KINDS: tuple[Kind, ...] = (
    "metrics",
    "statistics",
    "checks",
    "estimators",
    "exports",
    "sections",
    "update_rules",
    "engines",
    "signers",
)
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """A class that another distribution offers."""

    kind: Kind
    name: str
    distribution: str
    version: str
    digest: str
    """Of every Python file of the package, or of the one module, that holds the class."""


def names(kind: Kind, builtin: Sequence[str]) -> tuple[str, ...]:
    """The names of all members of a kind, built in or plugged in; no plug-in is loaded."""
    return (*builtin, *(point.name for point in _points(kind)))


def available(
    kind: Kind, builtin: Sequence[type[T]], base: type[T], key: str = "name"
) -> dict[str, type[T]]:
    """The classes of a kind by name: the built-in ones first, then those of plug-ins.

    Args:
        kind: of what.
        builtin: the classes that auditspec brings.
        base: what each class must be derived from.
        key: the class attribute that holds its name.

    Raises:
        UsageError: if a plug-in cannot be loaded, is no such class, or takes a name that is taken.
    """
    classes = {str(getattr(member, key)): member for member in builtin}
    for point in _points(kind):
        loaded = _load(kind, point)
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise _unusable(kind, point, f"{point.value} is no {base.__module__}.{base.__name__}")
        if getattr(loaded, key, None) != point.name:
            own = getattr(loaded, key, None)
            raise _unusable(kind, point, f"{point.value} calls itself {own!r}")
        if point.name in classes:
            raise _unusable(kind, point, "the name is taken")
        classes[point.name] = loaded
    return classes


def installed() -> tuple[Plugin, ...]:
    """Every plug-in that is installed, kind by kind; none is loaded."""
    return tuple(_described(kind, point) for kind in KINDS for point in _points(kind))


@contextmanager
def blamed(kind: Kind, name: str, member: object) -> Iterator[None]:
    """Make what a plug-in's member raises an error that names it; a built-in one's is left as it is.

    Raises:
        UsageError: in place of whatever is no `AuditspecError`.
    """
    try:
        yield
    except AuditspecError:
        raise
    except Exception as error:
        module = (member if isinstance(member, type) else type(member)).__module__
        if module.partition(".")[0] == __package__:
            raise
        raise UsageError(
            f"plug-in '{name}' ({kind}, from module {module}) failed: {type(error).__name__}: {error}",
            "mend it, or do without it",
        ) from error


def _points(kind: Kind) -> tuple[EntryPoint, ...]:
    return _points_along(tuple(sys.path)).get(f"auditspec.{kind}", ())


@lru_cache(maxsize=4)
def _points_along(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of our groups that a search path holds, sorted by name."""
    every = entry_points()
    groups = (f"auditspec.{kind}" for kind in KINDS)
    return {
        g: tuple(sorted(every.select(group=g), key=lambda p: (p.name, p.value))) for g in groups
    }


def _load(kind: Kind, point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:
        why = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
        raise _unusable(kind, point, why) from error


def _unusable(kind: Kind, point: EntryPoint, why: str) -> UsageError:
    distribution = point.dist.name if point.dist else "an unknown distribution"
    return UsageError(
        f"plug-in '{point.name}' ({kind}, from {distribution}): {why}",
        f"mend it, or remove it: pip uninstall {distribution}",
    )


def _described(kind: Kind, point: EntryPoint) -> Plugin:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")
    return Plugin(kind, point.name, name, version, _code_digest(kind, point))


def _code_digest(kind: Kind, point: EntryPoint) -> str:
    """Digest of the top-level package that a plug-in comes from."""
    top = point.module.partition(".")[0]
    try:
        return digest_of_package(top)
    except ImportError as error:
        raise _unusable(kind, point, str(error)) from None


def digest_of_package(top: str) -> str:
    """Digest of the Python files of a top-level package or module, by their names and contents.

    Raises:
        ImportError: if there is none.
    """
    try:
        found = find_spec(top)
    except (ImportError, ValueError) as error:
        raise ImportError(f"{top} cannot be found: {error}") from None
    if found is None:
        raise ImportError(f"there is no module {top}")
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    files = {
        path.relative_to(folder).as_posix(): path
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }
    if not folders and found.origin is not None:
        files = {Path(found.origin).name: Path(found.origin)}
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"
