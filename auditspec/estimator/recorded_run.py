"""The recorded run beside the arms that go along the record: its signal at every step.

An estimate may need y_k of the recorded run (`step_signals`) at every step. It stands in the recorded moments, where every
state was recorded and the first moment is linear in it; otherwise the stage is run once more. An audit does that anyway, to
see whether the record lands on its own states (the check `record-fidelity`): where both have one precision, one re-run
serves both. Nothing is kept of a signal: what is needed of it is made of it at its step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from auditspec.engine.interface import Engine
from auditspec.engine.optimizers.agreement import tells_gradients
from auditspec.estimator.step_signals import Signal, read_off
from auditspec.estimator.traveller import Traveller
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step

Passed = Callable[[StageTrajectory, int, int, State, Mapping[int, float]], None]
"""Told of every window that was re-run from its recorded state: its stage, its first step and its end, the state that was
reached, on the CPU, and the losses of its steps by their numbers."""


class Beside(ABC):
    """The recorded run on its way through one stage."""

    gradients: int = 0
    """Minibatch gradients that it took at the cost of whoever asks."""

    @abstractmethod
    def observe(self, step: Step) -> Signal:
        """Y of the recorded run on a part of the step that it makes next, before clipping."""

    @abstractmethod
    def make(self, step: Step) -> Signal:
        """Make the next step; y_k, clipped. Other runs may use the engine's model in between."""


@dataclass(frozen=True)
class RecordedRun:
    """How the recorded run is gone along.

    Args:
        shared: ids of the stages whose re-run is the check's, so that no estimate pays for it.
        passed: told of the windows on the way.
    """

    shared: frozenset[str] = frozenset()
    passed: Passed | None = None

    def cost(self, stage: StageTrajectory) -> int:
        """Minibatch gradients that all signals of a stage cost whoever asks for them."""
        if stage.id in self.shared or tells_gradients(stage):
            return 0
        return sum(len(step.batches) for step in stage.steps)

    def told(self, passed: Passed | None) -> RecordedRun:
        """The same, telling of the windows on the way."""
        return replace(self, passed=passed)

    def alone(self) -> RecordedRun:
        """The same for an estimate that goes its own way, and pays for all of it."""
        return RecordedRun(passed=self.passed)

    def enter(self, engine: Engine, stage: StageTrajectory, start: int = 0) -> Beside:
        """Begin a stage at a step; where that state was not recorded, the steps from the last one before are made again,
        at nobody's cost.
        """
        if tells_gradients(stage):
            return _ReadOff(engine, stage, start)
        return _Remade(engine, stage, start, self.passed, self.cost(stage) == 0)


class _ReadOff(Beside):
    """Where every state was recorded, and tells the gradient that led to it."""

    def __init__(self, engine: Engine, stage: StageTrajectory, start: int) -> None:
        self.engine, self.stage = engine, stage
        self._before = stage.state(start)
        self._run: Traveller | None = None

    def observe(self, step: Step) -> Signal:
        run = self._run = self._run or Traveller.begin(self.engine, self.stage, self._before)
        run.go_to(self._before)
        return run.observe(step)

    def make(self, step: Step) -> Signal:
        after = self.stage.state(step.index + 1)
        self.engine.enter(self.stage)
        signal = read_off(self.engine, self.stage, step, self._before, after)
        self._before = after
        return signal


class _Remade(Beside):
    """Where it is run once more, from one recorded state to the next."""

    def __init__(
        self,
        engine: Engine,
        stage: StageTrajectory,
        start: int,
        passed: Passed | None,
        free: bool,
    ) -> None:
        self.stage, self.passed, self.free = stage, passed, free
        self._recorded = frozenset(stage.state_steps)
        self._begun = max(k for k in self._recorded if k <= start)
        self._losses: dict[int, float] = {}
        self._run = Traveller.begin(engine, stage, stage.state(self._begun))
        for step in engine.steps_of(stage)[self._begun : start]:
            self._make(step)

    def observe(self, step: Step) -> Signal:
        return self._run.observe(step)

    def make(self, step: Step) -> Signal:
        if not self.free:
            self.gradients += len(step.batches)
        return self._make(step)

    def _make(self, step: Step) -> Signal:
        signal, loss = self._run.make(step)
        self._losses[step.index] = loss
        end = step.index + 1
        if end in self._recorded:
            if self.passed is not None:
                self.passed(self.stage, self._begun, end, self._run.state(), self._losses)
            self._begun, self._losses = end, {}
            self._run.go_to(self.stage.state(end))
        return signal
