"""Evaluation examples that are training examples: by row number, by the table's columns, and as loaded.

Files need not be the same for rows to be. Two rows are one example if the columns that both tables
have agree (`artifacts/rows.py`), or if `load_batch` gives the same tensors for them. If all agree but
the label, the example was trained on with another label. Rows that repeat too often for their content
to tell them apart are compared by row number only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.rows import Digest, columns_of, table_rows, tensor_rows
from auditspec.behaviors.bound import Slice
from auditspec.errors import EvidenceError
from auditspec.record.matching import LoadBatch, NotLoadedError, StageRows, loaded_rows

TELLING = 0.5
"""Share of different rows from which on content is taken to tell rows apart."""


@dataclass(frozen=True)
class Overlap:
    """How many examples of a behaviour's slice one stage trained on."""

    behavior: str
    stage: str
    examples: int
    """In the slice."""
    same: int
    relabelled: int
    """Trained on with another label."""
    told: bool
    """Whether the content of the rows tells them apart."""


@dataclass
class Rows:
    """The content of a data set's rows, as far as it was asked for."""

    dataset: Dataset
    label: str | None
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Empty for data that is no table."""
    leaves: dict[int, list[Digest]] = field(default_factory=dict)
    """Of each loaded row, by its number, the digest of each of its tensors."""
    labelled: int | None = None
    """Which tensor holds the label."""

    def loaded(self, number: int, but: int | None) -> tuple[Digest, ...]:
        """The content of a loaded row, without one of its tensors."""
        return tuple(d for place, d in enumerate(self.leaves[number]) if place != but)


def overlaps(
    slices: Mapping[str, Slice],
    stages: Sequence[StageRows],
    datasets: Mapping[str, Dataset],
    labels: Mapping[str, str | None],
    load_batch: LoadBatch,
) -> tuple[Overlap, ...]:
    """Compare the examples of every behaviour with those of every stage.

    Args:
        slices: by behaviour.
        stages: the examples of each stage's batches.
        datasets: every data set at hand, by name.
        labels: the column of true classes, by data set, where one is named.
        load_batch: the training code's.
    """
    wanted: dict[str, set[int]] = {}
    for part in slices.values():
        wanted.setdefault(part.dataset.name, set()).update(map(int, part.ids))
    for stage in stages:
        for name, numbers in stage.used.items():
            wanted.setdefault(name, set()).update(numbers)
    rows = {
        name: _read(datasets[name], labels.get(name), sorted(numbers), load_batch)
        for name, numbers in wanted.items()
        if name in datasets
    }
    compare = _Comparison(rows)
    return tuple(
        compare.overlap(behavior, part, stage)
        for behavior, part in slices.items()
        for stage in stages
    )


def _read(
    dataset: Dataset, label: str | None, numbers: Sequence[int], load_batch: LoadBatch
) -> Rows:
    rows = Rows(dataset, label)
    try:
        rows.columns = columns_of(dataset.frame)
    except EvidenceError:  # no table
        rows.columns = {}
    truth = rows.columns.get(label) if label is not None else None
    fits: set[int] | None = None
    try:
        for first, tensors in loaded_rows(dataset, load_batch, numbers):
            part = numbers[first : first + len(tensors[0])]
            found = zip(*map(tensor_rows, tensors), strict=True)
            rows.leaves.update(zip(part, map(list, found), strict=True))
            if truth is not None and truth.dtype != object:
                here = {
                    place
                    for place, t in enumerate(tensors)
                    if t.numel() == len(part)
                    and np.array_equal(t.reshape(-1).float().numpy(), truth[list(part)])
                }
                fits = here if fits is None else fits & here
    except NotLoadedError:
        rows.leaves = {}
    rows.labelled = min(fits) if fits else None
    return rows


View = tuple[Sequence[Any], Set[Any]]
"""Contents of the evaluation rows, and those of the training rows."""


class _Comparison:
    """Compares rows of data sets; what it computed once is kept."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self.rows = rows
        self._tables: dict[tuple[str, frozenset[str]], list[Digest]] = {}
        self._trained: dict[Hashable, Set[Any]] = {}

    def overlap(self, behavior: str, part: Slice, stage: StageRows) -> Overlap:
        """How many examples of one behaviour one stage trained on."""
        ids = [int(i) for i in part.ids]
        held = self.rows[part.dataset.name]
        same: set[int] = set()
        similar: set[int] = set()
        used = {name: numbers for name, numbers in stage.used.items() if name in self.rows}
        told = not used
        for name, numbers in used.items():
            if self.rows[name].dataset.digest == held.dataset.digest:
                same |= numbers.intersection(ids)
            for full, features in self._views(stage.stage, held, self.rows[name], ids, numbers):
                told = True
                for found, (contents, trained) in ((same, full), (similar, features)):
                    found |= {i for i, key in zip(ids, contents, strict=True) if key in trained}
        relabelled = len(similar - same)
        told = told or bool(same)
        return Overlap(behavior, stage.stage, len(ids), len(same), relabelled, told)

    def _views(
        self, stage: str, held: Rows, trained: Rows, ids: Sequence[int], used: Set[int]
    ) -> Iterator[tuple[View, View]]:
        """Each way to compare that tells rows apart: with the label, and without it."""
        common = frozenset(held.columns.keys() & trained.columns.keys())
        features = common - {held.label, trained.label}
        if features and _telling(self._table(held, features)):
            yield (
                self._columns(stage, held, trained, ids, used, common),
                self._columns(stage, held, trained, ids, used, features),
            )
        if held.leaves.keys() >= set(ids) and trained.leaves.keys() >= used:
            whole = self._loaded(stage, held, trained, ids, used, None)
            without = self._loaded(stage, held, trained, ids, used, held.labelled)
            if _telling(without[0]):
                yield whole, without

    def _columns(
        self,
        stage: str,
        held: Rows,
        trained: Rows,
        ids: Sequence[int],
        used: Set[int],
        names: frozenset[str],
    ) -> View:
        left, right = self._table(held, names), self._table(trained, names)
        place = stage, trained.dataset.name, names
        if place not in self._trained:
            self._trained[place] = {right[n] for n in used if n < len(right)}
        return [left[i] for i in ids], self._trained[place]

    def _loaded(
        self,
        stage: str,
        held: Rows,
        trained: Rows,
        ids: Sequence[int],
        used: Set[int],
        but: int | None,
    ) -> View:
        place = stage, trained.dataset.name, but
        if place not in self._trained:
            self._trained[place] = {trained.loaded(n, but) for n in used}
        return [held.loaded(i, but) for i in ids], self._trained[place]

    def _table(self, rows: Rows, names: frozenset[str]) -> list[Digest]:
        place = rows.dataset.name, names
        if place not in self._tables:
            self._tables[place] = table_rows(rows.columns, names)
        return self._tables[place]


def _telling(contents: Sequence[Any]) -> bool:
    return len(set(contents)) >= TELLING * len(contents)
