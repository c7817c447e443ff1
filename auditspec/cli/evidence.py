"""What `validate` finds out about the evidence of a spec, without running or unpacking any of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from auditspec.behaviors.header import column_names
from auditspec.errors import EvidenceError, Problem, SpecError
from auditspec.evidence import inspect_all
from auditspec.results import Evidence
from auditspec.spec import where
from auditspec.spec.lock import own_pins, pins
from auditspec.spec.source import LoadedSpec
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Location


@dataclass(frozen=True)
class Checked:
    """The state of every artifact, and what is wrong with it."""

    evidence: tuple[Evidence, ...]
    spec_problems: tuple[Problem, ...]
    """Of the lock, and of columns that the spec names and the data lacks."""
    evidence_problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check_evidence(loaded: LoadedSpec) -> Checked:
    """Compare every artifact with its pin, and the columns that the spec names with its data."""
    spec_problems: list[Problem] = []
    try:
        pinned = pins(loaded)
    except SpecError as error:
        spec_problems += error.problems
        pinned = own_pins(loaded)
    folder = loaded.path.parent
    evidence = inspect_all(loaded, pinned)
    evidence_problems = [problem for item in evidence for problem in _wrong(item, loaded)]
    readable = {item.name: item for item in evidence if item.state in ("verified", "declared")}
    columns: dict[str, list[str]] = {}
    reads = list(_columns_read(loaded))
    for name in dict.fromkeys(read.artifact for read in reads if read.artifact in readable):
        try:
            columns |= _columns_of(readable[name], folder)
        except EvidenceError as error:
            evidence_problems.append(_problem("AS042", readable[name], error.message, loaded))
    return Checked(
        evidence,
        tuple(spec_problems + list(_missing_columns(loaded, reads, columns))),
        tuple(evidence_problems),
        tuple(_unpinned(item, loaded) for item in evidence if item.state == "declared"),
    )


def _wrong(item: Evidence, loaded: LoadedSpec) -> Iterator[Problem]:
    if item.state == "missing":
        yield _problem("AS040", item, f"{item.path}: {item.note}", loaded)
    elif item.state == "mismatched" and item.found is None:
        yield _problem("AS042", item, item.note, loaded)
    elif item.state == "mismatched" and item.found == (item.expected or item.found):
        place = loaded.place(("artifacts", item.name, "signed_by"))
        message = f"artifact {item.name!r}: {item.note}"
        hint = "ask the trainer for the record again, whole and signed as the spec asks"
        yield Problem("AS044", message, str(loaded.path), *place, hint)
    elif item.state == "mismatched":
        message = f"digest is {item.found}, {item.pinned_in} pins {item.expected} ({item.note})"
        hint = "restore the pinned bytes, or pin the new ones if the change is intended"
        yield _problem("AS041", item, message, loaded, hint)


def _unpinned(item: Evidence, loaded: LoadedSpec) -> Problem:
    hint = f"add digest: {item.found}, or run auditspec digest --lock {loaded.path.name}"
    return _problem("AS043", item, "nothing pins its bytes", loaded, hint)


def _problem(
    code: str, item: Evidence, message: str, loaded: LoadedSpec, hint: str = ""
) -> Problem:
    """A problem at the artifact's digest where that is wrong and the spec pins it, else at its path."""
    at_digest = code == "AS041" and item.pinned_in == loaded.path.name
    location = ("artifacts", item.name, "digest" if at_digest else "path")
    return loaded.problem(code, f"artifact {item.name!r}: {message}", location, hint=hint, key=True)


# --- columns -----------------------------------------------------------------------------------


class _Read(NamedTuple):
    """A column that the spec reads from an artifact."""

    artifact: str
    column: str
    location: Location


def _columns_read(loaded: LoadedSpec) -> Iterator[_Read]:
    for name, artifact in loaded.spec.artifacts.items():
        if artifact.label is not None:
            yield _Read(name, artifact.label, ("artifacts", name, "label"))
    for index, behavior in enumerate(loaded.spec.behaviors):
        if behavior.where is not None:
            for column in sorted(where.columns(where.parse(behavior.where))):
                yield _Read(behavior.data, column, ("behaviors", index, "where"))


def _columns_of(item: Evidence, folder: Path) -> dict[str, list[str]]:
    """The columns of a table under its artifact's name; nothing for other formats."""
    names = column_names(folder / item.path) if item.kind == "file" else None
    return {} if names is None else {item.name: names}


def _missing_columns(
    loaded: LoadedSpec, reads: list[_Read], columns: dict[str, list[str]]
) -> Iterator[Problem]:
    for name, column, location in reads:
        if name in columns and column not in columns[name]:
            path = loaded.spec.artifacts[name].path
            hint = did_you_mean(column, columns[name], "columns")
            yield loaded.problem("AS031", f"{path} has no column {column!r}", location, hint=hint)
