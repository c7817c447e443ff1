"""What the parts of the consistency check look into, and where they note what they find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import TABLES, read_columns
from auditspec.artifacts.sources import Sources
from auditspec.artifacts.tensor_header import SUFFIX, TensorEntry
from auditspec.artifacts.weight_files import SUFFIXES, holds_weights, read_all_entries
from auditspec.behaviors.header import column_names
from auditspec.errors import AuditspecError, EvidenceError, Problem
from auditspec.record.format import HEADER, RecordHeader, TensorInfo
from auditspec.record.outline import read_header
from auditspec.results import Evidence
from auditspec.spec.source import LoadedSpec
from auditspec.spec.tree import Location

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = SUFFIXES
"""Names of files with weights end so."""


class Inquiry:
    """A spec with its artifacts; an artifact that is missing or changed is not looked into.

    Args:
        loaded: the spec.
        evidence: the state of every artifact.
    """

    def __init__(self, loaded: LoadedSpec, evidence: Iterable[Evidence]) -> None:
        self.loaded = loaded
        self.spec = loaded.spec
        self.evidence = {item.name: item for item in evidence}
        self.faults: list[Problem] = []
        """Of the spec."""
        self.defects: list[Problem] = []
        """Of the evidence."""
        self.warnings: list[Problem] = []
        self._told: set[Location] = set()
        self._frames: dict[tuple[str, tuple[str, ...]], pd.DataFrame | None] = {}
        self._columns: dict[str, list[str] | None] = {}
        self._entries: dict[str, dict[str, TensorEntry] | None] = {}

    # --- what is found

    def fault(
        self, code: str, message: str, location: Location, hint: str = "", *, key: bool = False
    ) -> None:
        """Note a fault of the spec at one of its values; the first one there is enough."""
        if location not in self._told:
            self._told.add(location)
            self.faults.append(self.loaded.problem(code, message, location, hint=hint, key=key))

    def told_of(self, name: str) -> bool:
        """Whether an artifact is wrong because the spec names the wrong file, or the wrong key."""
        return any(("artifacts", name, key) in self._told for key in ("path", "signed_by"))

    def defect(self, code: str, name: str, message: str, hint: str = "") -> None:
        """Note something that is wrong with an artifact, at its path."""
        location = ("artifacts", name, "path")
        message = f"artifact {name!r}: {message}"
        problem = self.loaded.problem(code, message, location, hint=hint, key=True)
        if problem not in self.defects:
            self.defects.append(problem)

    def warn(self, code: str, message: str, location: Location, hint: str = "") -> None:
        """Note something that is allowed, and probably not meant."""
        self.warnings.append(self.loaded.problem(code, message, location, hint=hint))

    # --- what there is

    def path(self, name: str) -> Path:
        """Where an artifact lies."""
        return self.loaded.where(name)

    def usable(self, name: str) -> bool:
        """Whether an artifact's bytes are the pinned ones, or nothing pins them."""
        item = self.evidence.get(name)
        return item is not None and item.state in ("verified", "declared")

    def is_table(self, name: str) -> bool:
        """Whether an artifact is a file with rows and columns."""
        return self.evidence[name].kind == "file" and self.path(name).suffix in TABLES

    def is_weights(self, name: str) -> bool:
        """Whether an artifact is a file or folder of weights, by the names of its files."""
        return holds_weights(self.path(name))

    def labelled(self) -> Iterator[tuple[str, str]]:
        """Every artifact with a label that can be read, with its column."""
        for name, artifact in self.spec.artifacts.items():
            if artifact.label is None or not self.usable(name) or not self.is_table(name):
                continue
            if artifact.label in (self.columns(name) or ()):
                yield name, artifact.label

    @cached_property
    def record(self) -> RecordHeader | None:
        """The record's header; None where there is no record that can be read."""
        folder = self.path("record")
        if not self.usable("record") and (not folder.exists() or _was_record(folder)):
            return None
        if not (folder / HEADER).is_file():
            self.fault(
                "AS036",
                f"artifact 'record': {self.spec.artifacts['record'].path} is no training record: "
                f"it holds no {HEADER}",
                ("artifacts", "record", "path"),
                "name the folder that the recorder wrote",
                key=True,
            )
            return None
        try:
            return read_header(folder)
        except AuditspecError as error:
            self.defect("AS042", "record", error.message, error.remedy)
            return None

    @cached_property
    def sources(self) -> Sources | None:
        """The code's syntax trees; None where there is no code that can be read."""
        found = self.evidence["code"].found
        if found is None:
            return None
        try:
            sources = Sources(CodeBundle.read(self.path("code"), found))
            return sources if self.usable("code") else None
        except EvidenceError as error:
            self.fault(
                "AS036",
                f"artifact 'code': {self.spec.artifacts['code'].path} holds no Python module",
                ("artifacts", "code", "path"),
                error.remedy,
                key=True,
            )
            return None

    def columns(self, name: str) -> list[str] | None:
        """The columns of a table; None for what is no table, or cannot be read."""
        if name not in self._columns:
            self._columns[name] = None
            if self.usable(name) and self.is_table(name):
                try:
                    self._columns[name] = column_names(self.path(name))
                except EvidenceError as error:
                    self.defect("AS042", name, error.message)
        return self._columns[name]

    def frame(self, name: str, columns: Iterable[str]) -> pd.DataFrame | None:
        """Some columns of a table, or the first one if none is asked for; None if it cannot be read."""
        wanted = tuple(sorted(columns)) or tuple((self.columns(name) or [])[:1])
        if not wanted:
            return None
        if (name, wanted) not in self._frames:
            self._frames[name, wanted] = None
            try:
                self._frames[name, wanted] = read_columns(self.path(name), wanted)
            except EvidenceError as error:
                self.defect("AS042", name, error.message)
        return self._frames[name, wanted]

    def tensors(self, name: str) -> dict[str, TensorEntry] | None:
        """The tensors of safetensors, one file or shards; None for another form, or what cannot be read."""
        if name not in self._entries:
            self._entries[name] = None
            if self.usable(name) and self.is_weights(name):
                try:
                    self._entries[name] = read_all_entries(self.path(name))
                except EvidenceError as error:
                    self.defect("AS042", name, error.message)
        return self._entries[name]

    def last_parameters(self) -> tuple[TensorInfo, ...]:
        """Parameters of the record's last model, in their order; none without a record."""
        if self.record is None:
            return ()
        for stage in reversed(self.record.stages):
            if stage.parameters is not None:
                return stage.parameters
        return self.record.parameters


def _was_record(folder: Path) -> bool:
    """Whether a folder is a record, or what someone left of one."""
    return (folder / HEADER).exists() or any(folder.glob("*/state-*" + SUFFIX))
