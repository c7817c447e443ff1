"""An engine that hands every question on to another and counts it: one class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step, Trajectory


class Counting(Engine):
    """Counts the questions by name; `Rerun` answers them."""

    name = "counting"

    def __init__(
        self,
        trajectory: Trajectory,
        functions: Functions,
        datasets: Mapping[str, Dataset],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(trajectory, functions, datasets, device=device, dtype=dtype)
        self.inner = Rerun(trajectory, functions, datasets, device=device, dtype=dtype)
        self.functions = self.inner.functions
        self.asked: Counter[str] = Counter()

    @property
    def model(self) -> nn.Module:
        return self.inner.model

    @property
    def gradients(self) -> int:
        return self.inner.gradients

    def count(self, gradients: int) -> None:
        self.inner.count(gradients)

    def enter(self, stage: StageTrajectory, *, differentiate: bool = False) -> None:
        self.asked["enter"] += 1
        self.inner.enter(stage, differentiate=differentiate)

    def optimizer(self, stage: StageTrajectory) -> Optimizer:
        self.asked["optimizer"] += 1
        return self.inner.optimizer(stage)

    def gradient(
        self, stage: StageTrajectory, step: Step, optimizer: Optimizer, **options: Any
    ) -> StepGradient:
        self.asked["gradient"] += 1
        return self.inner.gradient(stage, step, optimizer, **options)

    def back_pass(
        self,
        stage: StageTrajectory,
        microbatch: Microbatch,
        leaves: Sequence[Tensor],
        **options: Any,
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        self.asked["back_pass"] += 1
        return self.inner.back_pass(stage, microbatch, leaves, **options)

    def update(self, step_gradient: StepGradient) -> None:
        self.asked["update"] += 1
        self.inner.update(step_gradient)

    def hessian_vector(
        self, step_gradient: StepGradient, directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        self.asked["hessian_vector"] += 1
        return self.inner.hessian_vector(step_gradient, directions)

    def to_device(self, batch: Any) -> Any:
        self.asked["to_device"] += 1
        return self.inner.to_device(batch)
