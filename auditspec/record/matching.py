"""Which example each row of a recorded batch is: by its number where the batch holds ids, else by content.

A batch that was recorded as tensors is believed for what it holds, not for where it came from. Each of
its rows is looked for among the rows that `load_batch` gives of the data sets at hand: all tensors of
the recorded row must be among those of *one* loaded row, as the same numbers in float32, whatever
their shape and order. Where a batch was padded to another width, what was appended is taken off.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.rows import (
    Digest,
    final_values,
    leaves_of,
    row_count,
    tensor_rows,
    unpadded_rows,
)
from auditspec.errors import EvidenceError
from auditspec.record.batches import ITEMS
from auditspec.record.trajectory import Microbatch, StageTrajectory

CHUNK = 256
"""Rows that are loaded at once."""
MOST_LEAVES = 12
"""Most tensors of a loaded batch whose subsets are tried."""
MOST_PADDED = 4
"""Most tensors of a recorded batch that are compared without their padding."""
MOST_UNCOUNTED = 1_000_000
"""Most rows that are read of data whose rows cannot be counted beforehand."""

LoadBatch = Callable[[Dataset, Sequence[int]], Any]
Key = tuple[Digest, ...]
Row = tuple[str, int]
"""A row of a data set: its name there, and the row's number."""
Unmatched = tuple[None, Key]
"""A row that no data set at hand holds, by its content."""


@dataclass
class StageRows:
    """The examples of one stage's batches."""

    stage: str
    declared: tuple[str, ...]
    """Data sets that the stage declares."""
    steps: list[list[Row | Unmatched]] = field(default_factory=list)
    """Of every step, the rows of all its batches."""
    held: int = 0
    """Rows that were recorded as tensors."""
    foreign: dict[str, int] = field(default_factory=dict)
    """Rows of a data set that the stage does not declare, by its name."""
    nowhere: int = 0
    """Rows found in no data set at hand."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Data sets that could not be loaded for the comparison, each with the reason."""

    @property
    def seen(self) -> int:
        """Rows of all steps, repeats counted."""
        return sum(map(len, self.steps))

    @property
    def undeclared(self) -> int:
        """Rows that are not of the declared data."""
        return self.nowhere + sum(self.foreign.values())

    def count_foreign(self, name: str, rows: int) -> None:
        """Note rows of a data set that the stage does not declare."""
        self.foreign[name] = self.foreign.get(name, 0) + rows

    @cached_property
    def used(self) -> dict[str, set[int]]:
        """The numbers of the rows that were used of each data set."""
        rows: dict[str, set[int]] = {}
        for source, number in itertools.chain.from_iterable(self.steps):
            if source is not None and isinstance(number, int):
                rows.setdefault(source, set()).add(number)
        return rows


def rows_of(
    stage: StageTrajectory,
    declared: Sequence[str],
    datasets: Mapping[str, Dataset],
    load_batch: LoadBatch,
) -> StageRows:
    """Tell the examples of a stage's batches.

    Args:
        stage: the recorded stage; one without steps gives no rows.
        declared: names of the data sets that the spec gives it, which are searched first.
        datasets: every data set at hand, by name.
        load_batch: the training code's.

    Raises:
        RecordError: if the record cannot be read.
    """
    matched = StageRows(stage.id, tuple(declared))
    recorded = [b for step in stage.steps for b in step.batches if b.batch is not None]
    confirmed = {id(b) for b in recorded if _made_of_its_rows(b, datasets, load_batch)}
    search = _Search([_of_rows(b) for b in recorded if id(b) not in confirmed])
    for name in (*declared, *(n for n in datasets if n not in declared)):
        if search.open and name in datasets:
            reason = search.look_in(datasets[name], load_batch)
            if reason:
                matched.unreadable[name] = reason
    for step in stage.steps:
        rows: list[Row | Unmatched] = []
        for batch in step.batches:
            known = batch.batch is None or id(batch) in confirmed
            rows += _rows(batch, None if known else search, matched)
        matched.steps.append(rows)
    return matched


def _made_of_its_rows(
    batch: Microbatch, datasets: Mapping[str, Dataset], load_batch: LoadBatch
) -> bool:
    """Whether a recorded batch that names its rows holds what `load_batch` gives of them."""
    if batch.dataset is None or batch.dataset not in datasets:
        return False
    try:
        loaded = load_batch(datasets[batch.dataset], list(batch.ids))
    except Exception:  # what it is made of is then looked for
        return False
    return _are_loaded(_of_rows(batch), loaded, len(batch.ids))


def _are_loaded(tensors: Sequence[Tensor], loaded: Any, rows: int) -> bool:
    """Whether tensors are among those of a loaded batch of so many rows, or of several a row, as preferences have."""
    if not rows:
        return False
    own = [t.cpu() for t in leaves_of(loaded) if t.dim() and len(t) and len(t) % rows == 0]
    return any(t.dim() for t in tensors) and all(
        any(torch.equal(t.cpu(), other) for other in own) for t in tensors
    )


def holds_rows(batch: Any, load_batch: LoadBatch, dataset: Dataset, ids: Sequence[int]) -> bool:
    """Whether a batch holds certain rows: as `load_batch` gives them, or each but for its padding.

    Raises:
        Exception: that `load_batch` raises.
    """
    tensors = _of_rows(Microbatch(dataset.name, tuple(ids), 1.0, {}, batch))
    if _are_loaded(tensors, load_batch(dataset, list(ids)), len(ids)):
        return True
    search = _Search([tensors])
    return bool(search.open) and not search.look_in(dataset, load_batch, ids) and not search.open


def _of_rows(batch: Microbatch) -> tuple[Tensor, ...]:
    """The tensors of a batch but for what is no row's: a trainer's count, and single numbers beside named rows."""
    counted = batch.batch.get(ITEMS) if isinstance(batch.batch, dict) else None
    named = batch.dataset is not None
    rows = [t for t in batch.tensors if t.dim() or not (named or t is counted)]
    return tuple(rows) or batch.tensors


def _rows(
    batch: Microbatch, search: _Search | None, matched: StageRows
) -> Iterator[Row | Unmatched]:
    """The rows of a batch: those that it names, or where those are not to be believed, that are found."""
    if search is None:
        if batch.dataset not in matched.declared:
            matched.count_foreign(str(batch.dataset), len(batch.ids))
        yield from ((str(batch.dataset), number) for number in batch.ids)
        return
    for key in search.keys(_of_rows(batch)):
        row = search.places.get(key)
        matched.held += 1
        if row is None:
            matched.nowhere += 1
            yield None, key
            continue
        if row[0] not in matched.declared:
            matched.count_foreign(row[0], 1)
        yield row


class _Search:
    """Looks for recorded rows in one data set after the other."""

    def __init__(self, batches: Sequence[tuple[Tensor, ...]]) -> None:
        self.places: dict[Key, Row] = {}
        self.open: set[Key] = set()
        """Rows that were not found yet; only those of batches whose tensors have rows in common."""
        self._keys: dict[tuple[int, ...], list[Key]] = {}
        """By the ids of a batch's tensors."""
        self._batches = [tensors for tensors in batches if row_count(tensors) is not None]
        self._widths = {width for tensors in self._batches for width in _widths(tensors)}
        for tensors in batches:
            self._keys[tuple(map(id, tensors))] = _keys_of(tensors)
        for tensors in self._batches:
            self.open.update(self.keys(tensors))

    def keys(self, tensors: tuple[Tensor, ...]) -> list[Key]:
        """The content of every row of a recorded batch."""
        return self._keys[tuple(map(id, tensors))]

    def look_in(
        self, dataset: Dataset, load_batch: LoadBatch, ids: Sequence[int] | None = None
    ) -> str:
        """Look for the rows that are still open, in all rows or in some; give the reason if the data cannot be loaded."""
        loaded: set[tuple[int, ...]] = set()
        exact = {key: [key] for key in self.open}
        try:
            for first, tensors in loaded_rows(dataset, load_batch, ids):
                loaded.add(_widths(tensors))
                self._compare(dataset.name, first, tensors, exact)
                if not self.open:
                    return ""
            if len(loaded) > 1 or self._widths - {w for widths in loaded for w in widths}:
                bare = self._bare()  # batches are padded: one row at a time is padded to nothing
                for first, tensors in loaded_rows(dataset, load_batch, ids, chunk=1):
                    self._compare(dataset.name, first, tensors, bare)
        except NotLoadedError as error:
            return str(error)
        return ""

    def _compare(
        self, name: str, first: int, tensors: list[Tensor], wanted: Mapping[Key, list[Key]]
    ) -> None:
        sizes = {len(key) for key in wanted}
        loaded = zip(*map(tensor_rows, tensors[:MOST_LEAVES]), strict=True)
        for number, parts in enumerate(loaded, first):
            for size in sizes:
                for some in itertools.combinations(sorted(parts), size):
                    for key in wanted.get(some, ()):
                        if key in self.open:
                            self.open.discard(key)
                            self.places[key] = name, number

    def _bare(self) -> dict[Key, list[Key]]:
        """What open rows may have been before they were padded."""
        pads: dict[int, Counter[float]] = {}
        for tensors in self._batches:
            for place, tensor in enumerate(tensors):
                pads.setdefault(place, Counter()).update(final_values(tensor))
        bare: dict[Key, list[Key]] = {}
        for tensors in self._batches:
            if len(tensors) > MOST_PADDED or not self.open.intersection(self.keys(tensors)):
                continue
            cut = (unpadded_rows(tensor, _pad(pads[place])) for place, tensor in enumerate(tensors))
            rows = zip(*cut, strict=True)
            for key, choices in zip(self.keys(tensors), rows, strict=True):
                for parts in itertools.product(*choices) if key in self.open else ():
                    bare.setdefault(_key(parts), []).append(key)
        return bare


class NotLoadedError(Exception):
    """The data cannot be compared; says why."""


def loaded_rows(
    dataset: Dataset, load_batch: LoadBatch, ids: Sequence[int] | None = None, chunk: int = CHUNK
) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches of a data set, as flat lists of tensors with a row for each example.

    Args:
        dataset: what to load.
        load_batch: the training code's.
        ids: which rows; None: all, or of data whose rows cannot be counted as many as it gives.
        chunk: rows a batch.

    Yields:
        The position in `ids` of the batch's first row, and its tensors.
    """
    try:
        wanted: Sequence[int] = range(len(dataset)) if ids is None else ids
        counted = True
    except EvidenceError:
        wanted, counted = range(MOST_UNCOUNTED), False
    for start in range(0, len(wanted), chunk):
        part = [int(i) for i in wanted[start : start + chunk]]
        try:
            batch = load_batch(dataset, part)
        except Exception as error:
            if counted:
                raise NotLoadedError(
                    f"load_batch fails on its rows {part[0]} to {part[-1]}: "
                    f"{type(error).__name__}: {error}"
                ) from None
            if chunk == 1:
                return
            yield from (
                (start + offset, tensors)
                for offset, tensors in _until_refused(dataset, load_batch, part)
            )
            return
        tensors = [t for t in leaves_of(batch) if t.dim() and t.shape[0] == len(part)]
        if not tensors:
            yield from _rows_in_several(dataset, load_batch, wanted)
            return
        yield start, tensors


def _rows_in_several(
    dataset: Dataset, load_batch: LoadBatch, ids: Sequence[int]
) -> Iterator[tuple[int, list[Tensor]]]:
    """Rows one at a time, each in several rows of its tensors, as pairs are stacked: each of them as a tensor.

    Which rows of a batch of many belong together is not known: pairs are stacked in turn, or all of their first
    parts before their second. Each is given without the padding to the longest of its example, too.
    """

    def load(rows: Sequence[int]) -> list[Tensor]:
        try:
            return leaves_of(load_batch(dataset, [int(i) for i in rows]))
        except Exception as error:
            raise NotLoadedError(
                f"load_batch fails on its rows {rows[0]} to {rows[-1]}: {type(error).__name__}: {error}"
            ) from None

    one, two = load(ids[:1]), load([ids[0], ids[-1]])
    places = [
        place
        for place, (a, b) in enumerate(zip(one, two, strict=False))
        if a.dim() and b.dim() and 0 < 2 * len(a) == len(b)
    ]
    if not places:
        raise NotLoadedError("load_batch gives no tensor with a row for each example")
    for start, number in enumerate(ids):
        leaves = load([number])
        rows = [row for place in places for row in torch.split(leaves[place], 1)]
        yield start, [*rows, *(bare for row in rows if (bare := _without_padding(row)) is not None)]


def _without_padding(row: Tensor) -> Tensor | None:
    """A row [1, n] without the last run of one number; None where that is one number long, or all of it."""
    if row.dim() != 2 or row.shape[1] < 2 or bool((row != row[:, -1:]).sum() == 0):
        return None
    end = int((row[0] != row[0, -1]).nonzero().max()) + 1
    return row[:, :end] if end < row.shape[1] - 1 else None


def _until_refused(
    dataset: Dataset, load_batch: LoadBatch, ids: Iterable[int]
) -> Iterator[tuple[int, list[Tensor]]]:
    for offset, number in enumerate(ids):
        try:
            batch = load_batch(dataset, [number])
        except Exception:
            return
        yield offset, [t for t in leaves_of(batch) if t.dim() and t.shape[0] == 1]


def _keys_of(tensors: tuple[Tensor, ...]) -> list[Key]:
    """One key a row; of a batch whose tensors have no rows in common, a row of the longest."""
    if row_count(tensors) is not None:
        return [_key(parts) for parts in zip(*map(tensor_rows, tensors), strict=True)]
    longest = max(tensors, key=lambda t: len(t) if t.dim() else 0)
    return [(digest,) for digest in tensor_rows(longest if longest.dim() else longest[None])]


def _pad(ends: Counter[float]) -> float | None:
    """What rows were padded with: the number with which most end, and 0 where each ends otherwise."""
    if not ends:
        return None
    value, count = ends.most_common(1)[0]
    return value if count > 1 else 0.0


def _key(parts: Iterable[Digest]) -> Key:
    return tuple(sorted(parts))


def _widths(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Numbers in a row of each tensor."""
    return tuple(t[0].numel() for t in tensors if len(t))
