"""What a setting is, and how it becomes a recorded run: one loop for all of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditspec import Dataset, Recorder
from auditspec.artifacts.checkpoints import read_tensors, write_tensors
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import RecordError
from auditspec.record.trajectory import Trajectory

Batch = tuple[Tensor, Tensor]
Tables = dict[str, Batch]
"""Data sets by name: inputs x [N, ...] and labels y [N] or, for a language model, [N, T]."""

HOLDOUT = "holdout"
DATA_SEED = 0
"""The data is the same for every seed of training."""


@dataclass(frozen=True)
class Stage:
    """One stage: its data set, its steps, and its largest learning rate."""

    id: str
    data: str
    steps: int
    lr: float


@dataclass(frozen=True)
class Behaviour:
    """A number per evaluation row, and its mean.

    The log-probability of class `positive` (None: each row's true label); with `negative`, the
    logit margin positive - negative.
    """

    id: str
    rows: Tensor
    """Row numbers of the evaluation data."""
    positive: int | None = None
    negative: int | None = None

    @property
    def concern(self) -> int:
        """Direction of harm: a class read wrongly more (1), a true label read less (-1)."""
        return -1 if self.positive is None else 1

    def scores(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The behaviour's number for each of its rows, [len(rows)].

        Args:
            logits: [N, C] of all evaluation rows.
            labels: [N].
        """
        chosen, truth = logits[self.rows], labels[self.rows]
        if self.negative is None:
            positive = truth if self.positive is None else torch.full_like(truth, self.positive)
            return log_probability(chosen, positive)
        return chosen[:, self.positive] - chosen[:, self.negative]


@dataclass(frozen=True)
class Evaluation:
    """Held-out rows, and the behaviours that are read on them."""

    x: Tensor
    y: Tensor
    """True labels [N]."""
    behaviours: tuple[Behaviour, ...]


@dataclass(frozen=True)
class Setting:
    """A pipeline of at least five stages with a planted fault in a middle one.

    The optimizer is reset at each boundary, and the learning rate falls by a cosine to 0 in each
    stage, after `warmup` steps of linear rise.
    """

    name: str
    title: str
    factory: Callable[[], nn.Module]
    optimizer: str
    options: dict[str, Any]
    """Of the torch.optim class, without the learning rate."""
    stages: tuple[Stage, ...]
    fault: str
    """Id of the stage with the planted fault."""
    tables: Callable[[], Tables]
    """Every data set, `holdout` among them. Raises NotAvailableError where it cannot be had."""
    behaviours: Callable[[Tensor, Tensor], tuple[Behaviour, ...]]
    """(x, true labels) of the evaluation rows -> behaviours."""
    batch: int = 64
    warmup: int = 0

    def rate(self, stage: Stage, step: int) -> float:
        """Learning rate of a step of a stage."""
        if step < self.warmup:
            return stage.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / (stage.steps - self.warmup)
        return stage.lr / 2 * (1 + math.cos(math.pi * done))

    def shortened(self, steps: int) -> Setting:
        """The same pipeline with at most `steps` steps a stage."""
        stages = tuple(replace(s, steps=min(s.steps, steps)) for s in self.stages)
        return replace(self, stages=stages, warmup=min(self.warmup, steps // 2))

    def make(self, seed: int, folder: Path, every: int | Literal["boundaries"] = 1) -> Run:
        """Train and record into `folder`; a whole record of the same pipeline there is used again.

        Raises:
            NotAvailableError: if the setting's data cannot be had.
        """
        folder.mkdir(parents=True, exist_ok=True)
        datasets = _datasets(self.tables(), folder)
        try:
            _train(self, seed, folder / "record", datasets, every)
        except RecordError:  # of other code, data, or options
            shutil.rmtree(folder / "record")
            _train(self, seed, folder / "record", datasets, every)
        x, y = tensors(datasets[HOLDOUT])
        labels = y if y.dim() == 1 else y[:, -1]
        return Run(
            setting=self,
            seed=seed,
            folder=folder,
            trajectory=Trajectory.open(folder / "record"),
            functions=Functions(
                self.factory, load_batch, {s.id: cross_entropy for s in self.stages}, predict
            ),
            datasets=datasets,
            evaluation=Evaluation(x, labels, self.behaviours(x, labels)),
        )


@dataclass(frozen=True)
class Run:
    """A recorded run of a setting: what estimators and measurements start from."""

    setting: Setting
    seed: int
    folder: Path
    trajectory: Trajectory
    functions: Functions
    datasets: dict[str, Dataset]
    evaluation: Evaluation = field(repr=False)

    def rerun(self, **options: Any) -> Rerun:
        """A fresh `Rerun` over the record; options as `Rerun` takes them."""
        return Rerun(self.trajectory, self.functions, self.datasets, **options)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages' ids, in order."""
        return tuple(stage.id for stage in self.setting.stages)


# --- the functions that training, recording, and re-running share ---------------------------------


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Rows of a data set: x [B, ...], y [B] or [B, T]."""
    x, y = tensors(dataset)
    rows = torch.tensor(ids)
    return x[rows], y[rows]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over the batch; of a language model, over the batch's positions."""
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [B, C]; of a language model, those of the last position."""
    logits: Tensor = model(batch[0])
    return logits if logits.dim() == 2 else logits[:, -1]


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's label, [N], from logits [N, C]."""
    return F.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)


def batch_ids(seed: int, stage: int, step: int, rows: int, batch: int) -> list[int]:
    """Rows of one step's batch: of these numbers only, so that a resumed run draws the same."""
    draw = np.random.default_rng([seed, stage, step])
    return [int(row) for row in draw.choice(rows, min(batch, rows), replace=False)]


def tensors(dataset: Dataset) -> Batch:
    """x and y of a data set, read once."""
    return _read(dataset.path, dataset.digest)


@lru_cache(maxsize=16)
def _read(path: Path, digest: str) -> Batch:
    held = read_tensors(path, digest)
    return held["x"], held["y"]


def _datasets(tables: Tables, folder: Path) -> dict[str, Dataset]:
    (folder / "data").mkdir(exist_ok=True)
    datasets = {}
    for name, (x, y) in tables.items():
        path = folder / "data" / f"{name}.safetensors"
        write_tensors(path, {"x": x.contiguous(), "y": y.contiguous()})
        datasets[name] = Dataset.open(path)
    return datasets


def _train(
    setting: Setting,
    seed: int,
    record: Path,
    datasets: dict[str, Dataset],
    every: int | Literal["boundaries"],
) -> None:
    torch.manual_seed(seed)
    model = setting.factory()
    with Recorder(
        record,
        model,
        every=every,
        factory=setting.factory,
        load_batch=load_batch,
        resume=True,
        self_check=False,
    ) as recorder:
        for index, stage in enumerate(setting.stages):
            data = datasets[stage.data]
            rows = len(tensors(data)[0])
            kind = getattr(torch.optim, setting.optimizer)
            optimizer = kind(model.parameters(), lr=stage.lr, **setting.options)
            with recorder.stage(
                stage.id, optimizer, cross_entropy, dataset=data, steps=stage.steps
            ) as run:
                for step in run.steps:
                    optimizer.param_groups[0]["lr"] = setting.rate(stage, step)
                    loss = run.loss(batch_ids(seed, index, step, rows, setting.batch))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
