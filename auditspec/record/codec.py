"""Training states as named tensors, and tensors with facts as bytes: in records, journals, and the cache.

    param/NAME  buffer/NAME  optim/NAME/SLOT  rng/KIND  generator/KIND

Optimizer state that is no tensor stands beside them under NAME/SLOT.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from auditspec.artifacts.checkpoints import encoded_parts, read_checkpoint
from auditspec.errors import EvidenceError
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


def to_parts(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, sealed: bool = False
) -> Iterator[bytes | memoryview]:
    """Tensors, one that stands under several names once, and facts, as the parts of a safetensors file.

    Args:
        tensors: in the order in which `from_bytes` gives them back: sums over them round by it.
        facts: plain values, as JSON.
        sealed: with the digest of all of it.
    """
    first: dict[int, str] = {}
    place = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    once = {name: tensors[name] for name in first.values()}
    metadata = {"facts": json.dumps({**facts, "place": place})}
    if sealed:
        metadata["digest"] = tensors_digest(once, metadata["facts"])
    return encoded_parts(once, metadata)


def from_bytes(data: bytes, *, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `to_parts` was given.

    Raises:
        EvidenceError: if the bytes are damaged, or sealed and not what their digest says.
    """
    tensors, metadata = read_checkpoint(data)
    text = metadata.get("facts", "")
    if sealed and metadata.get("digest") != tensors_digest(tensors, text):
        raise EvidenceError("stored tensors are not what their digest says", "delete them")
    facts: dict[str, Any] = json.loads(text)
    return {name: tensors[place] for name, place in facts.pop("place").items()}, facts


def tensors_digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Digest of named tensors, of their types and shapes, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
