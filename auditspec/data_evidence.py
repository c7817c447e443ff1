"""What the data of an audit are: the rows that were trained on, and what else was read."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auditspec.artifacts.digest import digest_file
from auditspec.artifacts.manifest import Manifest
from auditspec.artifacts.named_files import named_files
from auditspec.artifacts.rows import columns_of, table_rows
from auditspec.audited_code import AuditedCode
from auditspec.behaviors.probing import undisturbed
from auditspec.engine.loading import Functions, no_logits
from auditspec.errors import EvidenceError
from auditspec.gather import Opened
from auditspec.messages import Message, message
from auditspec.record.matching import StageRows, rows_of
from auditspec.record.usage import Usage, usage_of
from auditspec.results import Evidence
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec

ELSEWHERE = message("of-another-function")
IMPORT = message("of-the-import")
FACTORY = message("of-the-factory")
EXTEND = message("of-extend")
LOAD_BATCH = message("of-load-batch")
PREDICT = message("of-predict")
STARTING = (FACTORY, EXTEND, IMPORT)
"""Whose reads may hold initial weights."""
PLACES = {
    "factory": message("factory-in-training-read"),
    "extend": message("extend-in-training-read"),
    "training": message("training-read"),
    "named": message("model-building-names"),
}
Who = tuple[Message, bool]
"""A function of the code, and whether it read a file or names it."""


@dataclass(frozen=True)
class TrainedRows:
    """The rows of every stage's batches."""

    rows: tuple[StageRows, ...]
    usage: Mapping[str, Usage]
    """How often each stage's batches hold each example, by stage."""

    @classmethod
    def of(cls, spec: Spec, opened: Opened, functions: Functions) -> TrainedRows:
        """The rows of the recorded batches, matched with the data at hand.

        Raises:
            RecordError: if the record cannot be read.
        """
        with undisturbed():
            rows = tuple(
                rows_of(trajectory, stage.data, opened.datasets, functions.load_batch)
                for stage, trajectory in zip(spec.stages, opened.trajectory.stages, strict=True)
            )
        return cls(rows, _usages(rows, opened))


def _usages(rows: Sequence[StageRows], opened: Opened) -> dict[str, Usage]:
    named = {name for stage in rows for name in (*stage.declared, *stage.used)}
    contents: dict[str, Sequence[Hashable]] = {}
    for name in named & opened.datasets.keys():
        try:
            columns = columns_of(opened.datasets[name].frame)
        except EvidenceError:  # no table
            continue
        contents[name] = table_rows(columns, columns)
    return {stage.stage: usage_of(stage, contents) for stage in rows}


@dataclass(frozen=True)
class Outside:
    """A file that was read and that no artifact pins."""

    path: str
    by: tuple[Message, ...]
    """Who read or names it."""
    digest: str | None
    """None where it is gone, or too large to be hashed."""
    starts: bool
    """Whether that was where the model is built or changed, or where the code is imported."""


class AuditReads:
    """Which files the audited code opens, from its import to the end of the audit.

    Args:
        loaded: the spec, whose entry points give the reads their names.
        opened: the code and the record.
        evidence: the artifacts.
        code: the code, imported, which tells of its reads.
    """

    def __init__(
        self, loaded: LoadedSpec, opened: Opened, evidence: Sequence[Evidence], code: AuditedCode
    ) -> None:
        self._loaded = loaded
        self._folder = loaded.path.parent.absolute()
        self._opened = opened
        self._evidence = evidence
        self._files = {opened.code.filename(path) for path in opened.code.contents}
        self._names = _names(loaded.spec)
        self._code = code

    def outside(self, functions: Functions) -> Iterator[Outside]:
        """Files that training, or the audited code here, read or names, and that no artifact pins."""
        pinned = _pinned(self._loaded, self._evidence, self._opened)
        files: dict[str, Outside] = {}
        for file in self._opened.trajectory.header.reads:
            if file.digest is None or file.digest not in pinned:
                readers = tuple(PLACES[place] for place in file.by)
                starts = file.by != ("training",)
                files[file.path] = Outside(file.path, readers, file.digest, starts)
        for path, by in self._here(functions).items():
            digest = _digest(Path(path))
            if digest in pinned or self._is_artifact(path):
                continue
            name = os.path.relpath(path, self._folder)
            name = path if name.startswith("..") else name
            name = next((n for n, f in files.items() if digest and f.digest == digest), name)
            before = files.get(name, Outside(name, (), digest, starts=False))
            readers = tuple(map(_reader, sorted(by, key=lambda who: repr(who[0]))))
            starts = before.starts or any(who in STARTING for who, _ in by)
            files[name] = Outside(name, before.by + readers, before.digest or digest, starts)
        yield from files.values()

    def _here(self, functions: Functions) -> dict[str, set[Who]]:
        """What the code read in this audit or names, by path: who, and which of the two."""
        reads = self._code.reads()
        files = {path: {(self._function(name), True) for name in by} for path, by in reads.items()}
        folders = [self._folder, Path.cwd(), self._opened.code.root]
        named: list[tuple[Message, Callable[..., Any]]] = [
            (FACTORY, functions.factory),
            (LOAD_BATCH, functions.load_batch),
        ]
        if functions.predict is not no_logits:
            named.append((PREDICT, functions.predict))
        named += [(EXTEND, change) for change in functions.extensions.values()]
        named += [(_objective(id_), function) for id_, function in functions.objectives.items()]
        for who, function in named:
            for path in named_files(function, self._files, folders):
                if (who, True) not in files.setdefault(str(path), set()):
                    files[str(path)].add((who, False))
        return files

    def _function(self, name: str) -> Message:
        return IMPORT if name == "<module>" else self._names.get(name, ELSEWHERE)

    def _is_artifact(self, path: str) -> bool:
        """Whether a path is an artifact, or lies in one; its bytes were checked before."""
        return any(
            Path(path).is_relative_to(self._loaded.where(e.name).absolute())
            for e in self._evidence
            if e.kind == "folder" and e.state == "verified"
        )


def _reader(who: Who) -> Message:
    function, read = who
    return message("file-read", who=function) if read else message("file-named", who=function)


def _objective(stage: str) -> Message:
    return message("of-the-objective", stage=stage)


def _names(spec: Spec) -> dict[str, Message]:
    """The spec's functions, by their names in the code."""
    model = spec.model
    named = {s.objective: _objective(s.id) for s in spec.stages}
    named |= {
        entry_point: message("of-the-metric", behavior=b.id)
        for b in spec.behaviors
        for entry_point in b.metric.functions.values()
    }
    named |= {s.extend: EXTEND for s in spec.stages if s.extend is not None}
    named |= {model.load_batch: LOAD_BATCH, model.factory: FACTORY}
    if model.predict is not None:
        named[model.predict] = PREDICT
    return {entry.partition(":")[2]: function for entry, function in named.items()}


def _pinned(loaded: LoadedSpec, evidence: Iterable[Evidence], opened: Opened) -> set[str]:
    """Digests of all files of all artifacts but the record, whose files are told by their place."""
    pinned = {file.digest for file in opened.code.files}
    for item in evidence:
        if item.state != "verified" or item.found is None or item.name == "record":
            continue
        if item.kind == "folder":
            pinned |= {file.digest for file in Manifest.scan(loaded.where(item.name)).files}
        else:
            pinned.add(item.found)
    return pinned


def _digest(path: Path) -> str | None:
    try:
        return digest_file(path.resolve())[0]
    except (OSError, EvidenceError):
        return None
