"""Re-run what several ranks recorded, in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from parallel_training import load_batch
from plain_parallel import STAGES, Case, loss_of, rows_of, table
from torch import Tensor, nn

from auditspec import Dataset
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.trajectory import Trajectory


def rerun_of(folder: Path, case: Case) -> Rerun:
    functions = Functions(case.build, load_batch, dict.fromkeys(STAGES, loss_of), predict)
    data = Dataset.open(folder.parent / "data.parquet")
    return Rerun(Trajectory.open(folder / "record"), functions, {"data": data})


def predict(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return model(batch[0].to(next(model.parameters())), batch[1])


def logits(case: Case, state: dict[str, Tensor]) -> Tensor:
    model = case.build().eval()
    model.load_state_dict(state, strict=False)  # tied weights have one name
    with torch.no_grad():
        return predict(model, rows_of(table(), range(64)))
