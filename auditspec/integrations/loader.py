"""Record what a torch `DataLoader` gives: the rows of every batch, and the batch where that is asked for.

::

    with recorder.stage("tune", optimizer, objective, dataset=data, steps=len(loader)) as run:
        for batch in recorded(loader, run):
            loss = objective(model, batch)
            ...

Row numbers are read off the batch sampler, which runs in the main process whatever the workers do, and
come out in the order of the batches. Loader, batches, and random numbers are those of a loop without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import update_wrapper
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import EvidenceError, RecordError
from auditspec.integrations.first_batch import refuse_other_rows
from auditspec.recorder.torch_hooks import TorchHooks

B = TypeVar("B")
OTHERWISE = (
    "let both make the same, or pass whole=True to record the batches beside their rows, as where the loader "
    "draws at random"
)
"""What to do where `load_batch` makes another batch than a loader."""
WRAPPED = ("base_dataloader", "_dataloader")
"""Where the loaders of accelerate and of Lightning Fabric keep the one that they iterate over."""


def recorded(
    loader: Iterable[B],
    run: TorchHooks,
    *,
    dataset: Dataset | None = None,
    weight: float = 1.0,
    whole: bool = False,
) -> Iterator[B]:
    """The batches of a loader, each declared to the record right before it is given.

    Where the stage has a data set, item i of the loader's data set is its row i (a `Subset` is seen
    through). Rows are recorded alone if the recorder has a `load_batch`, whose batch must equal the
    loader's; else with the batch. Without a data set, and of an `IterableDataset`, the batch is recorded.

    Args:
        loader: a `DataLoader`, or one that accelerate or Fabric has prepared.
        run: what `recorder.stage` gave.
        dataset: the data set that the rows point into; by default the stage's first.
        weight: factor of each batch's loss in the step's gradient.
        whole: record the batches beside their rows, where `load_batch` would make others: what the
            loader draws at random, such as an augmentation.

    Raises:
        RecordError: if the stage was begun before and is to be resumed, if the rows cannot be known, or if
            `load_batch` makes another batch of them.
    """
    stage = run.stage
    if stage.header.complete:
        return
    if stage.start:
        raise RecordError(
            f"{stage.place(stage.start)}: a loader begins its order anew, and cannot go on in the middle",
            "record the stage again from its start, in a new folder",
        )
    data = next(iter(stage.datasets.values()), None) if dataset is None else dataset
    batches = LoaderBatches(run, loader, data, whole=whole)
    for batch in loader:
        batches.declare(batch, weight)
        yield batch


class LoaderBatches:
    """Declares the batches of one pass of a loader, in the order in which it gives them.

    Args:
        run: what hears the stage.
        loader: whose pass begins, or has begun and gave no batch yet.
        data: whose row i is the loader's item i; None: the batches themselves are recorded.
        whole: record the batches beside their rows.
    """

    def __init__(
        self, run: TorchHooks, loader: Any, data: Dataset | None, *, whole: bool = False
    ) -> None:
        self._run = run
        self._data = data
        self._rows = None if data is None else LoaderRows.of(loader, data)
        self._whole = whole or run.stage.load_batch is None
        self._compared = self._whole

    def declare(self, batch: Any, weight: float) -> None:
        """Declare the batch that the loader gave last.

        Args:
            batch: as the objective is given it.
            weight: factor of its loss in the step's gradient.

        Raises:
            RecordError: if its rows are unknown, or `load_batch` makes another batch of them.
        """
        if self._rows is None or self._data is None:
            self._run.batch(tensors=batch, weight=weight)
            return
        ids = self._rows.next()
        if not self._compared and self._run.stage.load_batch is not None:
            refuse_other_rows(
                batch, self._run.stage.load_batch, self._data, ids, _identical, OTHERWISE
            )
            self._compared = True
        whole = batch if self._whole else None
        self._run.batch(ids, tensors=whole, dataset=self._data, weight=weight)


class NotedSampler:
    """A sampler of a loader that notes the keys of each batch it gives; otherwise the sampler itself.

    Args:
        sampler: of batches, or of single keys where the loader does not batch.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.drawn: deque[Any] = deque()
        """Those of the present pass whose batch was not yet given."""

    def __iter__(self) -> Iterator[Any]:
        drawn: deque[Any] = deque()
        self.drawn = drawn

        def noted() -> Iterator[Any]:
            for keys in self._sampler:
                drawn.append(keys)
                yield keys

        return noted()

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":
            raise AttributeError(name)
        return getattr(self._sampler, name)


class LoaderRows:
    """The rows of the batches of one pass, one after the other; made before its first batch is asked for."""

    def __init__(self, loader: Any, data: Dataset) -> None:
        """Use `of`."""
        self._name = data.name
        self._sampler = noted_sampler(loader)
        self._drawn: deque[Any] | None = None
        """Keys of this pass; another pass of the same loader has its own."""
        self._row = _row_of(loader.dataset, data)

    @classmethod
    def of(cls, loader: Any, data: Dataset) -> LoaderRows | None:
        """Those of a loader; None for one of an `IterableDataset`, which has no rows.

        Raises:
            RecordError: if the loader is none whose batches can be told apart, or has other rows than the
                data set.
        """
        inner = bare(loader)
        if isinstance(inner.dataset, IterableDataset):
            return None
        if getattr(loader, "skip_batches", 0):
            raise RecordError(
                "a loader that leaves out its first batches cannot be recorded",
                "use accelerator.skip_first_batches, which leaves them out of its sampler",
            )
        if not getattr(inner, "in_order", True):
            raise RecordError(
                "a loader with in_order=False gives its batches in an order that nobody knows",
                "leave in_order as it is by default",
            )
        return cls(inner, data)

    def next(self) -> list[int]:
        """The rows of the batch that was given last.

        Raises:
            RecordError: if they were drawn before they could be noted, or are no row numbers.
        """
        if self._drawn is None:
            self._drawn = self._sampler.drawn
        if not self._drawn:
            raise RecordError(
                f"the rows of a batch of '{self._name}' were drawn before they could be noted",
                "record the loader from its first pass, or make a new one",
            )
        keys = self._drawn.popleft()
        keys = keys.tolist() if hasattr(keys, "tolist") else keys
        return [self._row(key) for key in (keys if isinstance(keys, list | tuple) else [keys])]


def bare(loader: Any) -> DataLoader[Any]:
    """The loader of torch that a loader is, or iterates over.

    Raises:
        RecordError: if it is none.
    """
    for name in WRAPPED:
        loader = vars(loader).get(name, loader) if hasattr(loader, "__dict__") else loader
    if not isinstance(loader, DataLoader):
        raise RecordError(
            f"a {type(loader).__name__} is no DataLoader, whose rows can be noted",
            "record the batches themselves: leave dataset= out of recorder.stage, or call run.batch",
        )
    return loader


def noted_sampler(loader: DataLoader[Any]) -> NotedSampler:
    """The loader's sampler, which from now on notes what it gives; put in where it is not yet."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler = getattr(loader, name)
    if not isinstance(sampler, NotedSampler):
        sampler = NotedSampler(sampler)
        object.__setattr__(
            loader, name, sampler
        )  # a loader refuses setattr; persistent workers keep it
    return sampler


def _row_of(items: Any, data: Dataset) -> Callable[[Any], int]:
    """What a key of a torch data set is as a row of `data`.

    Raises:
        RecordError: if they have not as many rows.
    """
    chain = []
    while isinstance(items, Subset):
        chain.append(items.indices)
        items = items.dataset
    try:
        rows: int | None = len(data)
    except EvidenceError:  # not a table: only its own reader knows
        rows = None
    if rows is not None and len(items) != rows:
        raise RecordError(
            f"the loader's data set has {len(items)} items, and '{data.name}' {rows} rows",
            "give the stage the data set whose row i is the loader's item i",
        )

    def row(key: Any) -> int:
        for indices in chain:
            key = indices[key]
        if isinstance(key, bool) or not hasattr(key, "__index__"):
            raise RecordError(
                f"the loader's sampler gives the key {key!r}, which is no row of '{data.name}'",
                "use a data set with items 0, 1, 2, …, or leave dataset= out of recorder.stage",
            )
        return key.__index__()  # type: ignore[no-any-return]

    return row


def _identical(
    batch: Any, load_batch: Callable[[Any, Any], Any], data: Dataset, ids: Sequence[int]
) -> bool:
    """Whether `load_batch` gives the very batch, on which a re-run can then train in its place."""
    ours, theirs = (pytree.tree_flatten(_plain(b)) for b in (batch, load_batch(data, ids)))
    return ours[1] == theirs[1] and all(map(_equal, ours[0], theirs[0]))


def _plain(batch: Any) -> Any:
    """Lists and tuples are one: collating gives lists where functions give tuples."""
    if isinstance(batch, list | tuple):
        return [_plain(part) for part in batch]
    return {k: _plain(v) for k, v in batch.items()} if hasattr(batch, "items") else batch


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours.cpu(), theirs.cpu())
    return np.array_equal(ours, theirs)


def collated(
    collate_fn: Callable[[list[Any]], Any] = default_collate,
) -> Callable[[Callable[[Dataset], Any]], Callable[[Dataset, Sequence[int]], Any]]:
    """Make a `load_batch` of a function that opens the torch data set behind a data set.

    ::

        @collated(pad)
        def load_batch(data):  # at the top of a module
            return Sentences(data.frame)  # a torch data set whose item i is row i

    Its batches are those of a `DataLoader` with the same `collate_fn`, where items and collation draw no
    random numbers.

    Args:
        collate_fn: of the loader; by default that of torch.
    """

    def decorate(items_of: Callable[[Dataset], Any]) -> Callable[[Dataset, Sequence[int]], Any]:
        opened: WeakKeyDictionary[Dataset, Any] = WeakKeyDictionary()

        def load_batch(dataset: Dataset, ids: Sequence[int]) -> Any:
            if dataset not in opened:
                opened[dataset] = items_of(dataset)
            return collate_fn([opened[dataset][i] for i in ids])

        return update_wrapper(load_batch, items_of)

    return decorate
