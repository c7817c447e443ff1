"""States of the run that is recorded, as whole tensors, also where every rank holds a part of each.

The first rank asks for a state when it needs one; then all put its tensors together, one after another, and the first lets the
system keep them in a file without a name: no rank holds more than one whole tensor beyond its parts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.record.codec import decoded, encoded
from auditspec.record.describe_optimizer import build, fresh_moments
from auditspec.record.state import OptimizerState, State, capture, held
from auditspec.recorder.ranks import Ranks

ALIGNED = 64
"""Bytes, a multiple of which every tensor begins at."""


@dataclass(frozen=True)
class States:
    """States of a model and an optimizer, for the first rank, within what it leads (`Ranks.led`).

    Args:
        ranks: that train.
        model: of this rank.
        optimizer: of this rank.
        folder: where a file may stand.
    """

    ranks: Ranks
    model: nn.Module
    optimizer: Optimizer
    folder: Path

    def now(self) -> State:
        """The state as it stands, on the CPU, without random states.

        Raises:
            RecordError: if the optimizer keeps state that belongs to no parameter of the model.
            OSError: if the disk is too small for one that is put together.
        """
        if not self.ranks.sharded:
            return capture(self.model, self.optimizer)
        return self._whole("now")

    def fresh(self) -> OptimizerState:
        """The state that a new optimizer of this kind begins with."""
        if not self.ranks.sharded:
            return fresh_moments(self.model, self.optimizer)
        return self._whole("fresh").optimizer_state

    def serve(self, what: Literal["now", "fresh"]) -> None:
        """Give the first rank this one's parts of what it asks for."""
        for tensor in encoded(self._held(what))[0].values():
            whole(tensor)

    def _held(self, what: str) -> State:
        if what == "now":
            return held(self.model, self.optimizer)
        fresh = build(type(self.optimizer), self.optimizer.param_groups)
        return replace(held(self.model, fresh), parameters={}, buffers={})

    def _whole(self, what: Literal["now", "fresh"]) -> State:
        parts, plain = encoded(self._held(what))
        places = in_file(parts, self.folder)
        if parts:
            self.ranks.ask(what)
        for name, tensor in parts.items():
            places[name].copy_(whole(tensor))
        return decoded(places, plain)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values, put together by all ranks where each holds a part. All must call it."""
    together: Any = getattr(tensor, "full_tensor", None)
    return tensor if together is None else together()


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    own: Any = getattr(tensor, "to_local", None)
    return tensor if own is None else own()


def in_file(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Places for tensors on the CPU, in a file that has no name and goes with the last of them.

    Args:
        tensors: of their types and shapes.
        folder: where the file may stand.

    Raises:
        OSError: if the disk is too small.
    """
    sizes = [-(-t.numel() * t.itemsize // ALIGNED) * ALIGNED for t in tensors.values()]
    if not sum(sizes):
        return {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, sum(sizes))
        storage: Any = torch.UntypedStorage.from_file(f"/dev/fd/{file.fileno()}", True, sum(sizes))
    places, begin = {}, 0
    for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
        place = torch.empty(0, dtype=tensor.dtype)
        strides = torch.empty(tensor.shape, device="meta").stride()
        places[name] = place.set_(storage, begin // tensor.itemsize, tensor.shape, strides)
        begin += size
    return places
