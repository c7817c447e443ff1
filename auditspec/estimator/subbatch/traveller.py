"""A run on its way through one stage, which borrows the engine's model for its gradients and updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from auditspec.engine.interface import Engine
from auditspec.estimator.step_signals import Signal, advance, observe
from auditspec.record.state import State, capture, named_buffers, named_parameters, restore
from auditspec.record.trajectory import StageTrajectory, Step


@dataclass
class Traveller:
    """theta_k and the buffers of one run; its moments are those of an optimizer of its own."""

    engine: Engine
    stage: StageTrajectory
    optimizer: Optimizer
    tensors: dict[str, Tensor]

    @classmethod
    def begin(cls, engine: Engine, stage: StageTrajectory, state: State) -> Traveller:
        """Begin a stage, or go on within it, from a state of it; without moments with a fresh optimizer."""
        engine.enter(stage)
        optimizer = engine.optimizer(stage)
        restore(state, engine.model, optimizer)
        return cls(engine, stage, optimizer, {n: t.detach().clone() for n, t in _held(engine)})

    def observe(self, step: Step) -> Signal:
        """y_k of this run on a part of a step, before clipping."""
        self._enter()
        return observe(self.engine, self.stage, step, self.optimizer, clipped=False)[0]

    def advance(self, step: Step, signal: Signal) -> None:
        """Make the update that a signal gives."""
        self._enter()
        advance(self.engine, self.optimizer, step, signal)
        with torch.no_grad():
            for name, tensor in _held(self.engine):
                self.tensors[name].copy_(tensor)

    def state(self) -> State:
        """Where it stands, moments included, on the CPU."""
        self._enter()
        return capture(self.engine.model, self.optimizer)

    def _enter(self) -> None:
        with torch.no_grad():
            for name, tensor in _held(self.engine):
                tensor.copy_(self.tensors[name])


def _held(engine: Engine) -> list[tuple[str, Tensor]]:
    model = engine.model
    return [*named_parameters(model).items(), *named_buffers(model).items()]
