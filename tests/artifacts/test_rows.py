"""The content of rows: what counts, and what does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from auditspec.artifacts.rows import (
    columns_of,
    final_values,
    leaves_of,
    row_count,
    table_rows,
    tensor_rows,
    unpadded_rows,
)

FRAME = pd.DataFrame(
    {"a": [1, 2, 2], "b": [0.1, -0.0, np.nan], "c": ["x", "y", None], "d": ["1", "2", "3"]},
    index=[4, 4, 1],
)


def digests(frame: pd.DataFrame, *names: str) -> list[bytes]:
    return table_rows(columns_of(frame), names or [str(c) for c in frame.columns])


@pytest.mark.parametrize(
    "other",
    [
        FRAME[["d", "c", "a", "b"]],
        FRAME.astype({"a": "float32", "b": "float32", "d": int}),
        FRAME.astype({"a": "Int64", "c": "category", "d": "category"}),
        FRAME.astype({"c": "string", "a": "uint8"}).reset_index(drop=True),
        FRAME.assign(b=[0.1, 0.0, np.nan]),
    ],
    ids=["order", "narrow", "nullable", "string", "zero"],
)
def test_neither_types_nor_the_order_of_columns_count(other: pd.DataFrame) -> None:
    assert digests(other) == digests(FRAME)


@pytest.mark.parametrize(
    "change", [{"a": 3}, {"b": 0.2}, {"c": "z"}, {"d": "7"}, {"c": None}, {"b": np.nan}]
)
def test_every_value_counts(change: dict[str, object]) -> None:
    other = FRAME.reset_index(drop=True)
    for name, value in change.items():
        other[name] = [value, *other[name].iloc[1:]]
    found, before = digests(other), digests(FRAME)
    assert found[0] != before[0]
    assert found[1:] == before[1:]


def test_cells_that_are_lists_bytes_or_dates_are_told_apart() -> None:
    frame = pd.DataFrame(
        {
            "vector": [[1, 2], [1, 3], [1, 2]],
            "image": [b"a", b"a", b"b"],
            "nested": [{"k": [1.0]}, {"k": [1.0]}, {"k": [2.0]}],
            "when": pd.to_datetime(["2026-01-01", "2026-01-01", "2026-01-02"]),
        }
    )
    for name in frame:
        first, second, third = digests(frame, str(name))
        assert (first == second) == (name != "vector")
        assert (first == third) == (name == "vector")


def test_texts_are_not_run_together() -> None:
    frame = pd.DataFrame({"a": ["xy", "x"], "b": ["z", "yz"]})
    assert len(set(digests(frame))) == 2


def test_neither_the_type_nor_the_shape_of_a_tensor_counts() -> None:
    x = torch.tensor([[[0.1, 2], [3, -0.0]], [[5, 6], [7, 8]]], dtype=torch.float64)
    assert tensor_rows(x) == tensor_rows(x.float().reshape(2, 4))
    assert tensor_rows(x.int()) == tensor_rows(x.int().double())
    assert tensor_rows(x)[0] != tensor_rows(x.int())[0]
    assert len(set(tensor_rows(torch.eye(5)))) == 5


def test_rows_are_what_all_tensors_have_in_common() -> None:
    batch = {"x": torch.ones(3, 2), "y": [torch.ones(3), "text"]}
    assert row_count(leaves_of(batch)) == 3
    assert row_count([torch.ones(3), torch.ones(2)]) is None
    assert row_count([torch.ones(3), torch.tensor(1.0)]) is None


def test_what_was_appended_can_be_taken_off() -> None:
    bare = torch.tensor([[7.0, 8.0]])
    (alone,) = tensor_rows(bare)
    for pad, padded in ((0, [7, 8, 0]), (0, [7, 8, 0, 0]), (-100, [7, 8, -100]), (8, [7, 8, 8, 8])):
        (found,) = unpadded_rows(torch.tensor([padded]), pad)
        assert alone in found
    for pad, other in ((0, [7, 9, 0]), (1, [7, 8, 0]), (None, [7, 8, 0])):
        (found,) = unpadded_rows(torch.tensor([other]), pad)
        assert alone not in found


def test_the_last_number_of_rows_that_could_be_padded() -> None:
    assert final_values(torch.tensor([[1, 2], [3, 0]])) == [2, 0]
    assert final_values(torch.tensor([1, 2])) == []
