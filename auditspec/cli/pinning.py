"""What `digest --lock` changes in a lock file: told in words, and never in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from auditspec.artifacts.datasets import TABLES
from auditspec.artifacts.manifest import Measured
from auditspec.behaviors.header import row_count
from auditspec.errors import EvidenceError, Problem, SpecError, UsageError
from auditspec.spec.lock import Lock, lock_path
from auditspec.spec.source import LoadedSpec, in_order
from auditspec.spec.suggest import did_you_mean


@dataclass(frozen=True)
class Change:
    """An artifact that is not what its lock pins."""

    name: str
    old: str
    new: str
    words: str
    """The change in digests, in rows, and by which other artifact has the same bytes."""


def rows_of(loaded: LoadedSpec) -> dict[str, int]:
    """Rows of every artifact that is a table; one that cannot be read has none."""
    rows = {}
    for name in loaded.spec.artifacts:
        path = loaded.where(name)
        if path.suffix in TABLES and path.is_file():
            try:
                rows[name] = row_count(path)
            except EvidenceError:
                continue
    return rows


def changes(held: Lock, measured: Mapping[str, Measured], rows: Mapping[str, int]) -> list[Change]:
    """The pins that a new lock would change; new ones, and those that go, are no changes."""
    return [
        Change(name, old, measured[name].digest, _words(name, held, measured, rows))
        for name, old in held.digests.items()
        if name in measured and measured[name].digest != old
    ]


def refuse_unnamed(
    loaded: LoadedSpec, found: list[Change], held: Lock, named: Collection[str]
) -> None:
    """Refuse changes that nobody named.

    Raises:
        SpecError: with each of them, at its digest in the lock.
        UsageError: if a name is none of the spec's artifacts.
    """
    for name in named:
        if name not in loaded.spec.artifacts:
            hint = did_you_mean(name, loaded.spec.artifacts, "artifacts")
            raise UsageError(f"--update {name}: the spec has no such artifact", hint)
    path = lock_path(loaded.path)
    lines = path.read_text(encoding="utf-8").splitlines() if found else []
    problems = [
        Problem(
            "AS052",
            f"artifact {change.name!r} is not what was pinned: {change.words}",
            str(path),
            *_place(lines, change.name),
            f"restore {loaded.spec.artifacts[change.name].path}, or accept the change: "
            f"--update {change.name}",
        )
        for change in found
        if change.name not in named
    ]
    if problems:
        raise SpecError(in_order(problems))


def _words(name: str, held: Lock, measured: Mapping[str, Measured], rows: Mapping[str, int]) -> str:
    return "; ".join(_parts(name, held, measured, rows))


def _parts(
    name: str, held: Lock, measured: Mapping[str, Measured], rows: Mapping[str, int]
) -> Iterator[str]:
    old, new = held.digests[name], measured[name].digest
    yield f"{old[:19]}… → {new[:19]}…"
    before, now = held.rows.get(name), rows.get(name)
    if now is not None:
        yield f"{now} rows" if before is None else f"{before} → {now} rows"
    same = [n for n, m in measured.items() if n != name and m.digest == new]
    if same:
        yield f"the same bytes as {', '.join(same)}"


def _place(lines: list[str], name: str) -> tuple[int, int]:
    """Line and column of a name among the digests, as this program writes them; the start elsewhere."""
    for number, line in enumerate(lines, 1):
        column = line.find(f'"{name}"')
        if column >= 0:
            return number, column + 1
    return 1, 1
