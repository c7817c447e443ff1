"""A batch as tensors and a form: how a record holds what an objective was given.

The form is JSON: `{"tensor": i}` stands for the i-th tensor, `{"permuted": [i, d]}` for one whose dimensions lie in
another order in memory, `{"value": v}` for a plain value, and `dict`, `list`, and `tuple` for what is put together of
those. Order in memory is kept because products round by it: a table's columns, read into a batch, are a transposed matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auditspec.errors import RecordError

ITEMS = "num_items_in_batch"
"""Key of a batch under which a Trainer of transformers is told what it counted over the whole accumulated step."""
PLAIN = (bool, int, float, str, type(None))


def copied(batch: Any) -> Any:
    """A batch with copies of its tensors on the CPU; mappings of any kind become dicts.

    Raises:
        RecordError: for anything else than tensors and plain values in dicts, lists, and tuples.
    """
    if isinstance(batch, Tensor):
        return batch.detach().cpu().clone()
    if isinstance(batch, Mapping):
        if odd := [key for key in batch if not isinstance(key, str)]:
            raise _refused(f"a batch with the key {odd[0]!r}")
        return {key: copied(value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(copied(value) for value in batch)
    if type(batch) in PLAIN and not (isinstance(batch, float) and not math.isfinite(batch)):
        return batch
    if type(batch) in PLAIN:
        raise _refused(f"the number {batch}")
    raise _refused(f"a {type(batch).__name__} in a batch")


def taken_apart(batch: Any) -> tuple[list[Tensor], str]:
    """The tensors of a batch, and its form."""
    tensors: list[Tensor] = []

    def form(value: Any) -> dict[str, Any]:
        if isinstance(value, Tensor):
            order = _order(value)
            tensors.append(value.permute(order))
            number = len(tensors) - 1
            return {"tensor": number} if order == sorted(order) else {"permuted": [number, order]}
        if isinstance(value, dict):
            return {"dict": {key: form(part) for key, part in value.items()}}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [form(part) for part in value]}
        return {"value": value}

    return tensors, json.dumps(form(batch), separators=(",", ":"))


def put_together(tensors: Sequence[Tensor], form: str) -> Any:
    """The batch that `taken_apart` was given.

    Raises:
        ValueError: for a form that it did not give.
    """

    def made(part: Any) -> Any:
        if not isinstance(part, dict) or len(part) != 1:
            raise ValueError(f"{part!r} is no part of a batch")
        ((kind, value),) = part.items()
        if kind == "tensor" and type(value) is int and 0 <= value < len(tensors):
            return tensors[value]
        if kind == "permuted" and isinstance(value, list) and len(value) == 2:
            number, order = value
            if type(number) is int and 0 <= number < len(tensors) and isinstance(order, list):
                return _put_back(tensors[number], order)
        if kind == "value" and type(value) in PLAIN:
            return value
        if kind == "dict" and isinstance(value, dict):
            return {key: made(inner) for key, inner in value.items()}
        if kind in ("list", "tuple") and isinstance(value, list):
            inner = [made(one) for one in value]
            return inner if kind == "list" else tuple(inner)
        raise ValueError(f"{part!r} is no part of a batch")

    try:
        return made(json.loads(form))
    except RecursionError:
        raise ValueError("a batch that is nested without end") from None


def _order(tensor: Tensor) -> list[int]:
    """A tensor's dimensions from the outermost in memory to the innermost; as they are where numbers lie apart."""
    every = list(range(tensor.dim()))
    if tensor.is_contiguous() or tensor.layout != torch.strided:
        return every
    order = sorted(every, key=tensor.stride, reverse=True)
    return order if tensor.permute(order).is_contiguous() else every


def _put_back(stored: Tensor, order: list[Any]) -> Tensor:
    """The tensor of which `stored` has the dimensions in this order."""
    if any(type(d) is not int for d in order) or sorted(order) != list(range(stored.dim())):
        raise ValueError(f"{order!r} is no order of {stored.dim()} dimensions")
    return stored.permute([order.index(d) for d in range(len(order))])


def tensors_in(batch: Any) -> tuple[Tensor, ...]:
    """The tensors of a batch, in the order of its parts."""
    return tuple(leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))


def bytes_in(batch: Any) -> int:
    """Bytes of the tensors of a batch, those in mappings of any class too."""
    if isinstance(batch, Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        return sum(map(bytes_in, batch.values()))
    return sum(map(bytes_in, batch)) if isinstance(batch, list | tuple) else 0


def examples_in(batch: Any) -> int:
    """Rows of a batch: the first dimension of its first tensor that has one; 0 where none has."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 0)


def _refused(what: str) -> RecordError:
    return RecordError(
        f"{what} cannot be recorded",
        "pass tensors and plain values, alone or in dicts, lists, and tuples",
    )
