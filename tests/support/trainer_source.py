"""A trainer with callbacks of its own, and the source that hears it through them: no hook of torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training import StagePlan, cross_entropy, load_batch, table

from auditspec import Dataset, Recorder
from auditspec.record.format import Autocast
from auditspec.record.state import random_state
from auditspec.record.trajectory import Microbatch, Trajectory
from auditspec.recorder.events import OpenStage, Pass, Source, StepMade


class Trainer:
    """Trains a stage; whoever listens is called on the way."""

    def __init__(self, model: nn.Module, data: Dataset) -> None:
        self.model = model
        self.data = data
        self.listener: TrainerSource | None = None

    def train(self, stage: StagePlan, optimizer: torch.optim.Optimizer, steps: range) -> None:
        """Make some steps of a stage, as `training.one_step` makes them."""
        for step in steps:
            assert self.listener is not None
            stage.rates(optimizer, step)
            optimizer.zero_grad(set_to_none=not stage.keep_gradients)
            ids, n = stage.ids(step), stage.microbatches
            for part in range(n):
                self.listener.on_batch(ids[part::n], 1 / n)
                with stage.casting():
                    loss = cross_entropy(self.model, load_batch(self.data, ids[part::n]))  # type: ignore[arg-type]
                    share = loss if n == 1 else loss * (1 / n)
                share.backward()
                self.listener.on_loss(loss, stage.autocast)
            if stage.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), stage.clip_norm)
            self.listener.on_before_update()
            optimizer.step()
            self.listener.on_step_end()


class TrainerSource(Source):
    """Hears a `Trainer` through its callbacks."""

    def __init__(self, trainer: Trainer, stage: OpenStage) -> None:
        super().__init__(stage)
        self.trainer = trainer
        self.passes: list[Pass] = []
        self.autocast: Autocast | None = None

    def attach(self) -> None:
        self.trainer.listener = self

    def detach(self) -> None:
        self.trainer.listener = None

    def on_batch(self, ids: list[int], weight: float) -> None:
        self.ids, self.weight, self.before = tuple(ids), weight, self.random_state()

    def on_loss(self, loss: Tensor, autocast: torch.dtype | None) -> None:
        drew = self.random_state() != self.before
        microbatch = Microbatch("data", self.ids, self.weight, self.before if drew else {})
        self.passes.append(Pass(microbatch, loss.detach()))
        dtype: Any = str(autocast).removeprefix("torch.")
        self.autocast = None if autocast is None else Autocast(dtype=dtype)

    def on_before_update(self) -> None:
        groups = self.stage.optimizer.param_groups
        self.groups = tuple({k: v for k, v in g.items() if k != "params"} for g in groups)
        gradients = {n: p.grad for n, p in self.stage.model.named_parameters()}
        self.missing = tuple(n for n, g in gradients.items() if g is None)
        present = [g for g in gradients.values() if g is not None]
        clips = self.stage.header.clip_norm is not None
        self.norm = nn.utils.get_total_norm(present) if clips else None

    def on_step_end(self) -> None:
        passes, self.passes = tuple(self.passes), []
        self.stage.tell(StepMade(passes, self.groups, self.missing, self.norm, self.autocast))

    def random_state(self) -> dict[str, bytes]:
        states = random_state(self.stage.device)
        return {kind: state.numpy().tobytes() for kind, state in states.items()}


def train_with_trainer(
    folder: Path, plan: Iterable[StagePlan], build: Any, every: Any, *, resume: bool = False
) -> Trajectory:
    """Train and record as `training.train` does, heard by `TrainerSource`."""
    folder.mkdir(parents=True, exist_ok=True)
    table().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    torch.manual_seed(0)
    trainer, optimizer = Trainer(build(), data), None
    with Recorder(
        folder / "record",
        trainer.model,
        every=every,
        factory=build,
        load_batch=load_batch,
        resume=resume,
    ) as recorder:
        for stage in plan:
            stage.freeze(trainer.model)
            if optimizer is None or not stage.carry:
                optimizer = stage.make_optimizer(trainer.model)
            with recorder.stage(
                stage.id,
                optimizer,
                cross_entropy,
                steps=stage.steps,
                dataset=data,
                clip_norm=stage.clip_norm,
                source=partial(TrainerSource, trainer),
            ) as source:
                trainer.train(stage, optimizer, source.steps)
    return Trajectory.open(folder / "record")
