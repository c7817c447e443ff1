"""Fully sharded training by plain torch, which knows nothing of the recorder: runs with and without a stage.

`python plain_sharded.py RANK WORLD FOLDER CASE…` writes FOLDER/CASE/plain.pt: the whole state dict at the end of every run, by
the stage that was left out ("" for none), and FOLDER/CASE/dcp, that of the whole run as torch.distributed.checkpoint saves it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed.checkpoint as dcp
from plain_parallel import (
    SGD,
    STAGES,
    Case,
    Gpt,
    Mlp,
    build_gpt,
    build_gpt64,
    build_mlp,
    build_mlp64,
    build_normed,
    build_routed,
    joined,
    loss_of,
    rows_of,
    table,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard


class Tied(Gpt):
    """Its head takes the embedding's weights, of which the first three words are the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight


def build_tied() -> nn.Module:
    return Tied()


class Idle(Mlp):
    """A head is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(8, 3)


def build_idle() -> nn.Module:
    return Idle()


@dataclass(frozen=True)
class Sharded(Case):
    """A run of three stages on every rank, each of which holds a part of the model."""

    apart: tuple[str, ...] = ()
    """Modules that are sharded by themselves."""
    each: bool = False
    """Whether the gradient of every microbatch is summed over ranks by itself."""
    frozen: str = ""
    """Module that is frozen in the second stage."""
    carried: bool = False
    """Whether one optimizer makes all stages."""
    bfloat16: bool = False
    unused: bool = False
    """Whether ranks use other parameters than one another, whose gradients are summed with zeros."""
    ignored: str = ""
    """Module that is frozen in every stage, and whole on every rank."""

    def sharded(self) -> nn.Module:
        model = self.build()
        for name in self.apart:
            fully_shard(model.get_submodule(name))
        left = set(model.get_submodule(self.ignored).parameters()) if self.ignored else set()
        for p in left:
            p.requires_grad = False
        whole = fully_shard(model, ignored_params=left, reshard_after_forward=bool(left) or None)
        if self.unused:
            whole.set_reduce_scatter_unused_params(True)
        return whole

    def freeze(self, model: nn.Module, stage: str) -> None:
        for p in model.get_submodule(self.frozen).parameters() if self.frozen else ():
            p.requires_grad = stage != STAGES[1]


BLOCKS = ("qkv", "out")
CASES = {
    "mlp": Sharded(build_mlp, clip_norm=0.5, apart=("one",)),
    "mlp64": Sharded(build_mlp64, **SGD, frozen="one"),
    "accumulated": Sharded(build_mlp, microbatches=2, apart=("one",), clip_norm=0.5),
    "each": Sharded(build_mlp, microbatches=2, each=True),
    "frozen": Sharded(build_gpt, apart=BLOCKS, frozen="qkv", clip_norm=0.5),
    "unused": Sharded(build_idle, apart=("one", "two"), **SGD),
    "tied": Sharded(build_tied),
    "gpt": Sharded(build_gpt, clip_norm=1.0, apart=BLOCKS),
    "gpt64": Sharded(build_gpt64, apart=BLOCKS, clip_norm=1.0),
    "carried": Sharded(build_gpt, apart=BLOCKS, carried=True, microbatches=2, each=True),
    "adagrad": Sharded(build_mlp, optimizer="Adagrad", options={"lr": 0.1}),
    "bfloat16": Sharded(build_gpt, apart=BLOCKS, bfloat16=True),
    "routed": Sharded(build_routed, unused=True, **SGD),
    "ignored": Sharded(build_gpt, ignored="qkv", clip_norm=0.5),
    "normed": Sharded(build_normed, **SGD),
}
if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):  # torch 2.10
    del CASES["routed"]


def one_step(
    case: Sharded,
    model: Any,
    optimizer: torch.optim.Optimizer,
    microbatches: list[list[int]],
    loss: Callable[[list[int]], Tensor],
) -> None:
    """A step of one rank."""
    optimizer.zero_grad()
    for number, rows in enumerate(microbatches, 1):
        model.set_requires_gradient_sync(case.each or number == len(microbatches))
        with torch.autocast("cpu", enabled=case.bfloat16):
            part = loss(rows)
        part.backward()
    if case.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)
    optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, put together."""
    state = model.state_dict().items()
    return {n: t.full_tensor() if hasattr(t, "full_tensor") else t.clone() for n, t in state}


def trained(case: Sharded, frame: Any, without: str) -> nn.Module:
    """The end of a run without a stage, whose random numbers are drawn all the same."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = case.sharded()
    torch.manual_seed(100 + rank)
    optimizer = case.optimizer_of(model)
    for stage in STAGES:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        kept = {p: dict(s) for p, s in optimizer.state.items()} if case.carried else {}
        kept = {p: {k: torch.clone(v) for k, v in s.items()} for p, s in kept.items()}
        if not case.carried:
            optimizer = case.optimizer_of(model)
        case.freeze(model, stage)

        def loss(rows: list[int]) -> Tensor:
            return loss_of(model, rows_of(frame, rows)) / case.microbatches

        for microbatches in case.steps(stage, rank, world):
            one_step(case, model, optimizer, microbatches, loss)
        optimizer.zero_grad()
        if stage == without:
            model.load_state_dict(before)
            optimizer.state.update(kept)
            if not kept:
                optimizer.state.clear()
    return model


def main() -> None:
    folder, cases = joined()
    for name in cases:
        place, runs = folder / name, {}
        place.mkdir(exist_ok=True)
        for without in ("", *STAGES):
            model = trained(CASES[name], table(), without)
            runs[without] = whole(model)
            if not without:
                dcp.save(get_model_state_dict(model), checkpoint_id=str(place / "dcp"))
        if torch.distributed.get_rank() == 0:
            torch.save(runs, place / "plain.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
