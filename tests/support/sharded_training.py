"""Record the runs of `plain_sharded`: `python sharded_training.py RANK WORLD FOLDER CASE…`.

Every case leaves FOLDER/CASE/record and the end of its run, recorded.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from parallel_training import EVERY, load_batch
from plain_parallel import STAGES, joined, loss_of
from plain_sharded import CASES, Sharded, one_step, whole
from torch import Tensor, nn

from auditspec import Dataset, Recorder


def recorded(case: Sharded, folder: Path, data: Dataset) -> nn.Module:
    """The model at the end of a recorded run."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = case.sharded()
    torch.manual_seed(100 + rank)
    with Recorder(
        folder / "record", model, every=EVERY, factory=case.build, load_batch=load_batch
    ) as recorder:
        optimizer = case.optimizer_of(model)
        for stage in STAGES:
            if not case.carried:
                optimizer = case.optimizer_of(model)
            case.freeze(model, stage)
            with recorder.stage(
                stage, optimizer, loss_of, dataset=data, steps=case.length, clip_norm=case.clip_norm
            ) as run:

                def loss(rows: list[int], run: Any = run) -> Tensor:
                    part: Tensor = run.loss(rows, weight=1 / case.microbatches)
                    return part

                for microbatches in case.steps(stage, rank, world):
                    one_step(case, model, optimizer, microbatches, loss)
            optimizer.zero_grad()
    return model


def main() -> None:
    folder, cases = joined()
    data = Dataset.open(folder / "data.parquet")
    for name in cases:
        state = whole(recorded(CASES[name], folder / name, data))
        if torch.distributed.get_rank() == 0:
            torch.save(state, folder / name / "recorded.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
