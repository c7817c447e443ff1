"""What the loops of the libraries' tests share: rows, a loss, and the re-run that their records are held against."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from auditspec import Dataset
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory


def load_batch(dataset: Dataset, ids: Any) -> list[Tensor]:
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return [rows[:, :2].float(), rows[:, 2].long()]


def objective(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def items(rows: int) -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, 2, generator=draw), torch.randint(0, 2, (rows,), generator=draw)
    return TensorDataset(x, y)


def data_in(folder: Path, rows: int) -> Dataset:
    """The same rows as a data set of a record."""
    x, y = items(rows).tensors
    frame = pd.DataFrame(x.double().numpy(), columns=["a", "b"]).assign(y=y.numpy().astype(float))
    frame.to_parquet(folder / "data.parquet")
    return Dataset.open(folder / "data.parquet")


def named(entry_point: str) -> Any:
    """A class by `module:Class`, of a module that is imported already."""
    module, _, name = entry_point.partition(":")
    return getattr(sys.modules[module], name)


def landed(
    folder: Path,
    data: Dataset,
    factory: Callable[[], nn.Module],
    loss: Callable[..., Tensor] = objective,
    load: Callable[..., Any] = load_batch,
) -> Trajectory:
    """The record, every window of which is run again bit for bit."""
    trajectory = Trajectory.open(folder / "record")
    objectives = {stage.id: loss for stage in trajectory.stages}
    own = {stage.header.optimizer for stage in trajectory.stages if stage.header.optimizer_code}
    optimizers = {name: named(name) for name in own}
    functions = Functions(factory, load, objectives, loss, optimizers)
    rerun = Rerun(trajectory, functions, {"data": data})
    for stage, start, stop in trajectory.windows():
        assert deviation(rerun.run(stage, stage.state(start), start, stop), stage.state(stop)) == 0
    return trajectory
