"""Row numbers that travel with the batches of a PyTorch DataLoader, whatever draws, prefetches, or skips them.

The data set gives each example with its number, also in worker processes; the collate function sees the
examples alone, and the numbers go on in the batch under a key of their own, to be taken out before the
batch is used. Which rows a batch holds is thus read off the batch, not inferred from an order.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from auditspec.errors import RecordError

KEY = "auditspec_rows"


def number_rows(loader: Any, rows: Sequence[int] | None) -> None:
    """Let the batches of a DataLoader carry the numbers of their rows, until `take_rows` takes them out.

    Args:
        loader: a `torch.utils.data.DataLoader`, or accelerate's wrapper around one.
        rows: number of each example of the loader's data set; None: its position.

    Raises:
        RecordError: if the loader does not draw its examples by position.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if getattr(inner, "batch_sampler", None) is None or isinstance(inner.dataset, IterableDataset):
        raise RecordError(
            "the training data is a stream, whose examples have no row numbers",
            "leave out dataset=: the batches are recorded whole, and the audit looks for their rows",
        )
    # DataLoader refuses to set its data set once it is made.
    vars(inner)["dataset"] = _Numbered(inner.dataset, rows)
    inner.collate_fn = _Apart(inner.collate_fn)


def take_rows(batch: MutableMapping[str, Any]) -> tuple[int, ...]:
    """Take the row numbers out of a batch.

    Raises:
        RecordError: if they were lost on the way.
    """
    rows = batch.pop(KEY, None)
    if rows is None:
        raise RecordError(
            "the row numbers of a batch were lost between the data loader and the loss",
            "leave out dataset=: the batches are recorded whole, and the audit looks for their rows",
        )
    return tuple(int(row) for row in rows)


class _Numbered:
    """A data set whose examples come with their numbers; everything else is that of the data set."""

    def __init__(self, dataset: Any, rows: Sequence[int] | None) -> None:
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> tuple[int, Any]:
        return self._number(index), self._dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[int, Any]]:
        several = getattr(self._dataset, "__getitems__", None)
        examples = several(indices) if several else [self._dataset[i] for i in indices]
        return list(zip(map(self._number, indices), examples, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is unpickled, when there is no data set yet
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def _number(self, index: Any) -> int:
        return int(index if self._rows is None else self._rows[index])


class _Apart:
    """A collate function that is given the examples alone, and whose batch carries their numbers."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, numbered: Sequence[tuple[int, Any]]) -> Any:
        batch = self._collate([example for _, example in numbered])
        if not isinstance(batch, MutableMapping):
            raise RecordError(
                f"the collate function gives a {type(batch).__name__}, which carries no row numbers",
                "leave out dataset=, or let it give a dict",
            )
        batch[KEY] = [number for number, _ in numbered]
        return batch
