"""A training state as named tensors and plain values: the one layout, in records, journals, and the cache.

    param/NAME  buffer/NAME  optim/NAME/SLOT  rng/KIND  generator/KIND

Optimizer state that is no tensor stands beside them under NAME/SLOT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from auditspec.record.state import OptimizerState, State

KINDS = ("param", "buffer", "optim", "rng", "generator")


def encoded(state: State, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as named tensors, and what is no tensor.

    Args:
        state: to be written; its tensors are not copied.
        prefix: before every tensor's name.
    """
    slots = {
        f"{name}/{slot}": value
        for name, values in state.optimizer_state.items()
        for slot, value in values.items()
    }
    optimizer = {key: value for key, value in slots.items() if isinstance(value, Tensor)}
    groups = (state.parameters, state.buffers, optimizer, state.rng, state.generators)
    tensors = {
        f"{prefix}{kind}/{name}": tensor
        for kind, group in zip(KINDS, groups, strict=True)
        for name, tensor in group.items()
    }
    return tensors, {key: value for key, value in slots.items() if key not in optimizer}


def decoded(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], prefix: str = "") -> State:
    """The state that `encoded` gave, of those tensors whose names begin with the prefix.

    Raises:
        ValueError: if one of them has no place in a state.
    """
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for key, tensor in tensors.items():
        if not key.startswith(prefix):
            continue
        kind, _, name = key.removeprefix(prefix).partition("/")
        if kind not in groups or not name:
            raise ValueError(f"unknown tensor {key!r}")
        groups[kind][name] = tensor
    optimizer_state: OptimizerState = {}
    for key, value in [*groups["optim"].items(), *scalars.items()]:
        name, _, slot = key.rpartition("/")
        optimizer_state.setdefault(name, {})[slot] = value
    return State(
        groups["param"], groups["buffer"], optimizer_state, groups["rng"], groups["generator"]
    )
