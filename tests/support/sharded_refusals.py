"""Sharded loops that cannot be recorded: `python sharded_refusals.py RANK WORLD FOLDER`.

Prints a line a loop: its name, and what the recorder says to this rank. With `dies` at the end, one loop, which rank 1 leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from parallel_refusals import STEPS, add_head, planned
from parallel_training import load_batch
from plain_parallel import Mlp, build_mlp, build_normed, joined, loss_of
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_module

from auditspec import Dataset, Recorder
from auditspec.errors import RecordError


class Split(Mlp):
    """Every rank takes a head of its own, of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 3)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        head = self.other if distributed.is_initialized() and distributed.get_rank() else self.two
        return head(torch.tanh(self.one(x)))


def build_split() -> nn.Module:
    return Split()


def sharded(model: Any) -> Any:
    return fully_shard(model)


def partly(model: Any) -> Any:
    fully_shard(model.one)
    return model


def in_two_dimensions(model: Any) -> Any:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b")))


def over_one(model: Any) -> Any:
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))["b"])


def by_tensor(model: Any) -> Any:
    return distribute_module(model, init_device_mesh("cpu", (2,)))


def in_bfloat16(model: Any) -> Any:
    return fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


def in_float32(model: Any) -> Any:
    return fully_shard(model, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def by_columns(model: Any) -> Any:
    return fully_shard(model, shard_placement_fn=lambda p: Shard(p.dim() - 1))


def dividing(model: Any) -> Any:
    fully_shard(model).set_gradient_divide_factor(1.0)
    return model


def hooked(model: Any) -> Any:
    fully_shard(model).set_all_reduce_hook(print)
    return model


def kept_apart(model: Any) -> Any:
    fully_shard(model).set_requires_gradient_sync(False)
    return model


def partly_apart(model: Any) -> Any:
    fully_shard(model.one).set_requires_gradient_sync(False)
    return fully_shard(model)


def no_change(optimizer: Any, rank: int) -> None:
    pass


def other_parameters(optimizer: Any, rank: int) -> None:
    if rank:
        optimizer.param_groups[0]["params"].pop()


def other_rate(optimizer: Any, rank: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.1 * (1 + rank)


def look(model: nn.Module) -> None:
    """Validate on two rows."""
    with torch.no_grad():
        model.eval()(torch.ones(2, 4), torch.ones(2, 6))
    model.train()


def refused(
    folder: Path,
    data: Dataset,
    shard: Callable[[Any], Any] = sharded,
    *,
    build: Callable[[], nn.Module] = build_mlp,
    change: Callable[[Any, int], None] = no_change,
    steps: int = STEPS,
    extend: bool = False,
    plan: int = 0,
    resume: bool = False,
    looks: bool = False,
    dies: bool = False,
    scaled: bool = False,
) -> str:
    """What the recorder says of a loop; "nothing" where it records it."""
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = shard(build())
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    try:
        with Recorder(
            folder, model, every=2, factory=build, load_batch=load_batch, resume=resume
        ) as recorder:
            if extend:
                recorder.extend(add_head)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            change(optimizer, rank)
            if plan:
                planned(recorder, optimizer, data, plan)
            with recorder.stage("s", optimizer, loss_of, dataset=data, steps=STEPS) as run:
                for step in range(steps):
                    optimizer.zero_grad()
                    scaler.scale(run.loss([8 * rank + i + step for i in range(8)])).backward()
                    if scaled and rank and step == 1:
                        model.one.weight.grad.to_local().fill_(torch.inf)
                    if looks:
                        look(model)
                    if dies and rank and step:
                        raise ValueError("no more rows")
                    scaler.step(optimizer)
                    scaler.update()
    except RecordError as error:
        return f"{error.message} | {error.remedy}"
    return "nothing"


def main() -> None:
    folder, only = joined()
    data = Dataset.open(folder / "data.parquet")
    loops: dict[str, dict[str, Any]] = {
        "fine": {},
        "again": {"_folder": "fine"},
        "resumed": {"_folder": "fine", "resume": True},
        "precision": {"shard": in_bfloat16},
        "own-precision": {"shard": in_float32},
        "two-dimensions": {"shard": in_two_dimensions},
        "some-ranks": {"shard": over_one},
        "tensors": {"shard": by_tensor},
        "partly": {"shard": partly},
        "divided": {"shard": dividing},
        "columns": {"shard": by_columns},
        "hooked": {"shard": hooked},
        "apart": {"shard": kept_apart},
        "partly-apart": {"shard": partly_apart},
        "heads": {"build": build_split},
        "buffers": {"build": build_normed},
        "other-parameters": {"change": other_parameters},
        "looked": {"looks": True},
        "rate": {"change": other_rate},
        "extended": {"extend": True},
        "committed": {"plan": 8},
        "other-plan": {"plan": 7},
        "scaled": {"scaled": True},
        "few": {"steps": STEPS - 1},
    }
    if only == ["dies"]:
        loops = {"dies": {"dies": True}}
    for name, options in loops.items():
        place = folder / options.pop("_folder", name)
        print(f"{name}: {refused(place, data, **options)}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
