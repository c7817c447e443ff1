"""Values survive the way between two processes; what does not hold together is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from auditspec.sealed.codec import Many, Reader, Writer

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def over(value: Any) -> Any:
    writer = Writer()
    text = json.dumps(writer.value(value))
    return Reader(writer.tensors, writer.blocks).value(json.loads(text))


def alike(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if isinstance(left, list | tuple):
        return (
            type(left) is type(right) and all(map(alike, left, right)) and len(left) == len(right)
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(alike(v, right[k]) for k, v in left.items())
    return type(left) is type(right) and bool(left == right)


@given(plain)
def test_plain_values_survive(value: Any) -> None:
    assert alike(value, over(value))


def test_tensors_survive() -> None:
    many = over(Many([torch.ones(2), None, torch.zeros(0, 3)]))
    assert many[1] is None
    assert many[2].shape == (0, 3)
    for kind in (torch.bfloat16, torch.float64, torch.bool, torch.int8):
        assert torch.equal(over(torch.ones(2, 3, dtype=kind)), torch.ones(2, 3, dtype=kind))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)[None],
        torch.arange(48.0).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
        torch.arange(12.0).view(3, 4)[:, :3],
        torch.arange(12).view(3, 4)[:, ::2],
        torch.arange(3.0)[:, None].expand(3, 5),
        torch.ones(()).expand(4, 4),
        torch.tensor([[True, False], [True, True]]).T,
    ],
    ids=range(8),
)
def test_strides_survive(tensor: Tensor) -> None:
    """A kernel may round by them: training read what a table's transpose gave."""
    there = over(tensor)
    assert torch.equal(there, tensor)
    assert there.stride() == tensor.stride()
    assert there.dtype == tensor.dtype


def test_scattered_and_overlapping_tensors_survive_without_their_strides() -> None:
    for tensor in (torch.arange(1000.0)[::100], torch.arange(9.0).unfold(0, 4, 1)):
        assert torch.equal(over(tensor), tensor)


def test_one_tensor_in_two_places_stays_one() -> None:
    ids = torch.arange(4).view(2, 2).T
    there = over({"input_ids": ids, "labels": ids, "copy": ids.clone()})
    assert there["labels"] is there["input_ids"]
    assert there["copy"] is not there["input_ids"]


@pytest.mark.parametrize(
    ("shape", "stride"),
    [([10**7, 10**7], [0, 0]), ([5], [1]), ([-1], [1]), ([2], [-1]), ("ab", [1])],
)
def test_strides_that_lead_elsewhere_are_refused(shape: Any, stride: Any) -> None:
    with pytest.raises(ValueError, match=r"tensor|strided"):
        Reader([torch.ones(4)]).value(["strided", 0, shape, stride])


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=5)
        | st.sampled_from(
            [
                "tensor",
                "strided",
                "many",
                "dict",
                "named",
                "opaque",
                "each",
                "pairs",
                "size",
                "array",
            ]
        ),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=15,
    )
)
def test_anything_else_is_a_value_or_refused(node: Any) -> None:
    try:
        Reader([torch.ones(1)], [[torch.ones(1)]]).value(node)
    except ValueError:
        return


def test_depth_is_bounded() -> None:
    node: Any = None
    for _ in range(200):
        node = ["list", node]
    with pytest.raises(ValueError, match="deeply"):
        Reader([]).value(node)
