"""Batches in a record: what was taken apart is put together as it was, order in memory included."""

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from auditspec.record.batches import copied, put_together, taken_apart


@given(st.lists(st.integers(1, 4), max_size=4), st.randoms(use_true_random=False))
def test_a_tensor_comes_back_with_its_numbers_and_its_order_in_memory(
    shape: list[int], rng: Any
) -> None:
    order = list(range(len(shape)))
    rng.shuffle(order)
    tensor = torch.randn(shape).permute(order)
    tensors, form = taken_apart({"x": [tensor], "n": 3})
    stored = [t.contiguous() for t in tensors]
    again = put_together(stored, form)
    assert again["n"] == 3
    assert torch.equal(again["x"][0], tensor)
    assert [s for s, n in zip(again["x"][0].stride(), tensor.shape, strict=True) if n > 1] == [
        s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1
    ]


def test_products_of_a_recorded_batch_round_as_those_of_the_batch() -> None:
    """A transposed matrix may round otherwise than a contiguous one, on some processors."""
    weight = torch.randn(16, 4)
    for order in permutations(range(2)):
        x = torch.randn(8, 4) if order == (0, 1) else torch.randn(4, 8).T
        tensors, form = taken_apart(copied(x))
        again: Tensor = put_together([t.contiguous().clone() for t in tensors], form)
        assert torch.equal(again @ weight.T, x @ weight.T)


def test_numbers_that_lie_apart_are_kept_as_they_are() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)[:, 1:3]
    (stored,), form = taken_apart(tensor)
    assert torch.equal(put_together([stored.contiguous()], form), tensor)


@pytest.mark.parametrize(
    "form",
    [
        '{"permuted": [0, [0]]}',
        '{"permuted": [0, [0, 0]]}',
        '{"permuted": [0, [0, true]]}',
        '{"permuted": [1, [1, 0]]}',
        '{"permuted": [0, 1]}',
        '{"permuted": [0]}',
        '{"permuted": {"0": 1}}',
    ],
)
def test_an_order_that_is_none_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"is no (order|part)"):
        put_together([torch.zeros(2, 3)], form)
