"""An engine that hands every question on to another: the base of those that watch or change some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step, Trajectory


class EngineWrapper(Engine):
    """Hands every primitive question on to `inner`; a subclass overrides those that it is about.

    What is composed of them (`run`, `walk`, `loss`, …) comes to the subclass's own answers. Its arguments
    are those of `Engine`.
    """

    wraps: ClassVar[type[Engine]] = Rerun
    """Class of the inner engine."""

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
        self.inner = self.wraps(trajectory, functions, datasets, device=device, dtype=dtype)
        self.functions = self.inner.functions

    @property
    def model(self) -> nn.Module:
        """The inner engine's."""
        return self.inner.model

    @property
    def gradients(self) -> int:
        """Minibatch gradients that the inner engine computed."""
        return self.inner.gradients

    def count(self, gradients: int) -> None:
        """Hand on to the inner engine, as all of the following."""
        self.inner.count(gradients)

    def enter(self, stage: StageTrajectory, *, differentiate: bool = False) -> None:
        """Hand on."""
        self.inner.enter(stage, differentiate=differentiate)

    def optimizer(self, stage: StageTrajectory) -> Optimizer:
        """Hand on."""
        return self.inner.optimizer(stage)

    def gradient(
        self, stage: StageTrajectory, step: Step, optimizer: Optimizer, **options: Any
    ) -> StepGradient:
        """Hand on."""
        return self.inner.gradient(stage, step, optimizer, **options)

    def back_pass(
        self,
        stage: StageTrajectory,
        microbatch: Microbatch,
        leaves: Sequence[Tensor],
        **options: Any,
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Hand on."""
        return self.inner.back_pass(stage, microbatch, leaves, **options)

    def update(self, step_gradient: StepGradient) -> None:
        """Hand on."""
        self.inner.update(step_gradient)

    def hessian_vector(
        self, step_gradient: StepGradient, directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Hand on."""
        return self.inner.hessian_vector(step_gradient, directions)

    def to_device(self, batch: Any) -> Any:
        """Hand on."""
        return self.inner.to_device(batch)
