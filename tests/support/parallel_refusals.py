"""Data-parallel loops that cannot be recorded: `python parallel_refusals.py RANK WORLD FOLDER`.

Prints a line a loop: its name, and what the recorder says to this rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from parallel_training import load_batch
from plain_parallel import build_normed, joined, loss_of
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from auditspec import Dataset, Plan, PlannedPass, Recorder
from auditspec.errors import RecordError

STEPS = 3


def build_synchronized() -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(build_normed())


def no_change(wrapped: Any, optimizer: Any, rank: int) -> None:
    pass


def other_rate(wrapped: Any, optimizer: Any, rank: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.1 * (1 + rank)


def moved(wrapped: Any, optimizer: Any, rank: int) -> None:
    with torch.no_grad():
        wrapped.module.one.bias += rank


def hooked(wrapped: Any, optimizer: Any, rank: int) -> None:
    wrapped.register_comm_hook(None, fp16_compress_hook)


def not_averaged(wrapped: Any, optimizer: Any, rank: int) -> None:
    wrapped.require_backward_grad_sync = False  # as no_sync() leaves it inside


def add_head(model: Any) -> None:
    model.two = nn.Linear(8, 3)  # drawn by every rank from numbers of its own


def planned(recorder: Recorder, optimizer: Any, data: Dataset, rows: int) -> None:
    """Commit to steps of so many rows a rank."""
    steps = [
        [PlannedPass([8 * rank + i + step for i in range(rows)], weight=1 / 2) for rank in range(2)]
        for step in range(STEPS)
    ]
    recorder.commit("s", optimizer, loss_of, Plan(steps), code=__file__, dataset=data)


def refused(
    folder: Path,
    data: Dataset,
    change: Callable[[Any, Any, int], None] = no_change,
    *,
    outside: bool = False,
    build: Callable[[], nn.Module] = build_normed,
    join: bool = False,
    options: dict[str, Any] | None = None,
    steps: int = STEPS,
    resume: bool = False,
    ignored: tuple[str, ...] = (),
    extend: bool = False,
    plan: int = 0,
) -> str:
    """What the recorder says of a loop; "nothing" where it records it."""
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = build()
    if ignored:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    wrapped: Any = model if outside else DistributedDataParallel(model, **(options or {}))
    try:
        with Recorder(
            folder, wrapped, every=2, factory=build, load_batch=load_batch, resume=resume
        ) as recorder:
            if extend:
                torch.manual_seed(rank)
                recorder.wrapper = wrapped = DistributedDataParallel(recorder.extend(add_head))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            if plan:
                planned(recorder, optimizer, data, plan)
            change(wrapped, optimizer, rank)
            with recorder.stage("s", optimizer, loss_of, dataset=data, steps=STEPS) as run:
                if join:
                    wrapped._join_config = wrapped._join_config._replace(enable=True)
                for step in range(steps):
                    optimizer.zero_grad()
                    run.loss([8 * rank + i + step for i in range(8)]).backward()
                    optimizer.step()
    except RecordError as error:
        return f"{error.message} | {error.remedy}"
    return "nothing"


def main() -> None:
    folder, _ = joined()
    data = Dataset.open(folder / "data.parquet")
    loops: dict[str, dict[str, Any]] = {
        "fine": {},
        "again": {"_folder": "fine"},
        "resumed": {"_folder": "fine", "resume": True},
        "outside": {"outside": True},
        "rate": {"change": other_rate},
        "moved": {"change": moved},
        "hooked": {"change": hooked},
        "no-sync": {"change": not_averaged},
        "buffers": {"options": {"broadcast_buffers": False}},
        "synchronized": {"build": build_synchronized, "outside": True},  # its wrapper wants a GPU
        "ignored": {"ignored": ("one.bias",)},
        "join": {"join": True},
        "extended": {"extend": True},
        "committed": {"plan": 8},
        "other-plan": {"plan": 7},
        "few": {"steps": STEPS - 1},
    }
    for name, options in loops.items():
        place = folder / options.pop("_folder", name)
        print(f"{name}: {refused(place, data, **options)}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
