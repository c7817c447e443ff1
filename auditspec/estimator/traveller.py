"""A run on its way through one stage, which borrows the engine's model for its gradients and updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from auditspec.engine.interface import Engine
from auditspec.estimator.step_signals import Signal, advance, make, observe
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
        return cls(
            engine, stage, optimizer, {n: t.detach().clone() for n, t in _held(engine).items()}
        )

    def observe(self, step: Step) -> Signal:
        """y_k of this run on a part of a step, before clipping."""
        self._enter()
        return observe(self.engine, self.stage, step, self.optimizer, clipped=False)

    def make(self, step: Step) -> tuple[Signal, float]:
        """Make a step as it is made in training; y_k of this run, clipped, and its loss."""
        self._enter()
        made = make(self.engine, self.stage, step, self.optimizer)
        self._leave()
        return made

    def advance(self, step: Step, signal: Signal) -> None:
        """Make the update that a signal gives."""
        self._enter()
        advance(self.engine, self.optimizer, step, signal)
        self._leave()

    def go_to(self, state: State) -> None:
        """Be where a state of the stage is."""
        self.engine.enter(self.stage)
        restore(state, self.engine.model, self.optimizer)
        self._leave()

    def state(self) -> State:
        """Where it stands, moments included, on the CPU."""
        self._enter()
        return capture(self.engine.model, self.optimizer)

    def _enter(self) -> None:
        """Lend the model to this run."""
        self.engine.enter(self.stage)
        _copy(_held(self.engine), self.tensors)

    def _leave(self) -> None:
        """Take from the model where this run is now."""
        _copy(self.tensors, _held(self.engine))


def _held(engine: Engine) -> dict[str, Tensor]:
    return {**named_parameters(engine.model), **named_buffers(engine.model)}


def _copy(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    if into:
        with torch.no_grad():
            torch._foreach_copy_([*into.values()], [given[name] for name in into])
