"""Record the runs of `plain_parallel`: `python parallel_training.py RANK WORLD FOLDER CASE…`.

Every case leaves FOLDER/CASE/record and the end of its run on each rank, recorded-RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from plain_parallel import CASES, STAGES, Case, joined, loss_of, one_step, rows_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from auditspec import Dataset, Recorder

EVERY = 2


def load_batch(dataset: Dataset, ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    return rows_of(dataset.frame, ids)


def recorded(case: Case, folder: Path, data: Dataset) -> nn.Module:
    """The model at the end of a recorded run."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    model = case.build()
    wrapped = DistributedDataParallel(model, **case.wrapped)
    torch.manual_seed(100 + rank)
    with Recorder(
        folder / "record", wrapped, every=EVERY, factory=case.build, load_batch=load_batch
    ) as recorder:
        for stage in STAGES:
            optimizer = case.optimizer_of(model)
            with recorder.stage(
                stage, optimizer, loss_of, dataset=data, steps=case.length, clip_norm=case.clip_norm
            ) as run:

                def loss(rows: list[int], run: Any = run) -> Tensor:
                    part: Tensor = run.loss(rows, weight=1 / case.microbatches)
                    return part

                for microbatches in case.steps(stage, rank, world):
                    one_step(case, wrapped, optimizer, microbatches, loss)
    return model


def main() -> None:
    folder, cases = joined()
    data = Dataset.open(folder / "data.parquet")
    for name in cases:
        model = recorded(CASES[name], folder / name, data)
        torch.save(
            model.state_dict(), folder / name / f"recorded-{torch.distributed.get_rank()}.pt"
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
