"""Values survive the way between two processes; what does not hold together is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=5)
        | st.sampled_from(
            ["tensor", "many", "dict", "named", "opaque", "each", "pairs", "size", "array"]
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
