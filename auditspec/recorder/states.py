"""States of the run that is recorded, as whole tensors, also where every rank holds a part of each.

The first rank asks for a state when it needs one; then all put its tensors together, one after another, and the first lets the
system keep them in a file without a name: no rank holds more than one whole tensor beyond its parts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.errors import RecordError
from auditspec.record.codec import decoded, encoded
from auditspec.record.describe_optimizer import build, fresh_moments
from auditspec.record.state import OptimizerState, State, capture, held, is_part, named_parameters
from auditspec.recorder.ranks import Ranks

T = TypeVar("T")
Which = Literal["now", "fresh"]
"""The state as it stands; or that with which a new optimizer begins, without the model's."""
ALIGNED = 64
"""Bytes, a multiple of which every tensor begins at."""


@dataclass(frozen=True)
class States:
    """States of a model and an optimizer, for the first rank, within what it leads (`led`).

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

    def led(self, job: Callable[[], T]) -> T:
        """What a job gives on the first rank, which may ask for states; all must call it.

        Raises:
            RecordError: on the others, if it failed on the first.
            Exception: on the first, what it raised.
        """
        return self.ranks.led(job, self._serve)

    def now(self) -> State:
        """The state as it stands, on the CPU, without random states.

        Raises:
            RecordError: if the optimizer keeps state that belongs to no parameter of the model, or another on another rank.
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

    def _held(self, which: Which) -> State:
        if which == "now":
            return held(self.model, self.optimizer)
        fresh = build(type(self.optimizer), self.optimizer.param_groups)
        return replace(held(self.model, fresh), parameters={}, buffers={})

    def _whole(self, which: Which) -> State:
        parts, plain = encoded(self._held(which))
        if not parts:
            return decoded({}, plain)
        self.ranks.ask((which, "named"))
        _refuse_others(self.ranks.gathered(self._named(parts)))
        places = in_file(parts, self.folder)
        self.ranks.ask((which, "put together"))
        for name in sorted(parts):
            places[name].copy_(whole(parts[name]))
        return decoded(places, plain)

    def _serve(self, asked: tuple[Which, Literal["named", "put together"]]) -> None:
        """Do this rank's part of what the first one asks for."""
        which, what = asked
        parts, _ = encoded(self._held(which))
        if what == "named":
            self.ranks.gathered(self._named(parts))
        else:
            for name in sorted(parts):
                whole(parts[name])

    def _named(self, parts: Mapping[str, Tensor]) -> dict[str, Any]:
        """What ranks must hold the same of, by name, to put tensors together and to make one step."""
        names = {id(p): name for name, p in named_parameters(self.model).items()}
        groups = [[names.get(id(p)) for p in g["params"]] for g in self.optimizer.param_groups]
        shapes = {name: (t.shape, t.dtype, is_part(t)) for name, t in parts.items()}
        return {"the optimizer": groups, **shapes}


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values, put together by all ranks where each holds a part. All must call it."""
    own: Any = tensor
    together: Tensor = own.full_tensor() if is_part(tensor) else tensor
    return together


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    own: Any = tensor
    local: Tensor = own.to_local() if is_part(tensor) else tensor
    return local


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


def _refuse_others(named: Sequence[Mapping[str, Any]]) -> None:
    """Refuse ranks that hold parts of other tensors than the first: they would wait for one another, or mix them up."""
    for rank, theirs in enumerate(named):
        odd = [n for n in {**named[0], **theirs} if named[0].get(n) != theirs.get(n)]
        if odd:
            raise RecordError(
                f"{odd[0]} is another on rank {rank} than on rank 0",
                "make the same optimizer over the same parameters on every rank",
            )
