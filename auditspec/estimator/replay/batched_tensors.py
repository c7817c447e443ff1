"""Tensors of several arms, stacked along their first dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def close(left: list[Tensor], right: list[Tensor]) -> bool:
    """||left - right|| <= sqrt(eps) ||left||, and not finite in the same places."""
    pairs = list(zip(left, right, strict=True))
    floating = [(a, b) for a, b in pairs if a.is_floating_point()]
    if not all(torch.equal(a, b) for a, b in pairs if not a.is_floating_point()):
        return False
    if not floating:
        return True
    eps = max(torch.finfo(a.dtype).eps for a, _ in floating)
    x, y = (torch.cat([t.double().flatten() for t in side]) for side in zip(*floating, strict=True))
    finite = torch.isfinite(x)
    if not torch.equal(finite, torch.isfinite(y)):
        return False
    x, y = x[finite], y[finite]
    return float((x - y).square().sum()) <= eps * float(x.square().sum())


def stacked_optimizer_state(values: list[dict[str, Any]], like: Tensor) -> dict[str, Any] | None:
    """One parameter's moments over all arms; None where plain values or counters differ."""
    stacked: dict[str, Any] = {}
    if any(v.keys() != values[0].keys() for v in values) or (values[0] and like.dim() == 0):
        return None
    for key, first in values[0].items():
        column = [v[key] for v in values]
        if isinstance(first, Tensor) and first.shape == like.shape:
            stacked[key] = torch.stack(column)
        elif all(type(x) is type(first) for x in column) and all(
            torch.equal(x, first) if isinstance(first, Tensor) else x == first for x in column
        ):
            stacked[key] = first
        else:
            return None
    return stacked


def row_of(value: Any, row: int, stacked: Tensor) -> Any:
    """One arm's part of an optimizer's value, on the CPU; a value that all arms share as it is."""
    if isinstance(value, Tensor) and value.shape == stacked.shape and value.dim() > 0:
        return on_cpu(value[row])
    return on_cpu(value)


def on_cpu(value: Any) -> Any:
    """A copy on the CPU, where it is a tensor."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A gradient, or zeros where the loss did not reach the parameter."""
    return torch.zeros_like(like) if gradient is None else gradient
