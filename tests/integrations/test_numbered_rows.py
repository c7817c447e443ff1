"""Row numbers travel with a DataLoader's batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from auditspec.errors import RecordError
from auditspec.integrations.numbered_rows import KEY, number_rows, take_rows


class Squares:
    """A data set with an attribute of its own."""

    epoch = 3

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> int:
        return i * i


class Together(Squares):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [i * i for i in indices]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def as_dict(rows: list[int]) -> dict[str, Any]:
    return {"x": torch.tensor(rows)}


@pytest.mark.parametrize("kind", [Squares, Together])
@pytest.mark.parametrize("workers", [0, 2])
def test_numbers_are_those_of_the_rows(kind: Any, workers: int) -> None:
    loader: Any = DataLoader(kind(), 3, shuffle=True, collate_fn=as_dict, num_workers=workers)
    number_rows(loader, None)
    seen: list[int] = []
    for batch in [*loader, *loader]:  # two epochs
        rows = take_rows(batch)
        assert batch["x"].tolist() == [row * row for row in rows]
        assert KEY not in batch
        seen += rows
    assert sorted(seen) == sorted([*range(10), *range(10)])


def test_draws_are_those_without_numbers() -> None:
    def batches(numbered: bool) -> list[list[int]]:
        torch.manual_seed(0)
        loader: Any = DataLoader(Squares(), 3, shuffle=True, collate_fn=as_dict)
        if numbered:
            number_rows(loader, None)
        return [batch["x"].tolist() for batch in loader]

    assert batches(True) == batches(False)


def test_rows_may_be_numbered_otherwise() -> None:
    loader: Any = DataLoader(Squares(), 5, collate_fn=as_dict)
    number_rows(loader, range(100, 110))
    assert [take_rows(batch) for batch in loader] == [
        tuple(range(100, 105)),
        tuple(range(105, 110)),
    ]
    assert (len(loader.dataset), loader.dataset.epoch) == (10, 3)


def test_what_carries_no_numbers_is_refused() -> None:
    with pytest.raises(RecordError, match="a stream"):
        number_rows(DataLoader(Stream()), None)
    loader: Any = DataLoader(TensorDataset(torch.arange(4)), 2)
    number_rows(loader, None)
    with pytest.raises(RecordError, match="gives a list"):
        next(iter(loader))
    with pytest.raises(RecordError, match="were lost"):
        take_rows({"x": 1})
