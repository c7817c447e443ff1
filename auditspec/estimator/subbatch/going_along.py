"""Several arms on their way along the record, in step with the recorded run, on parts of its minibatches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from auditspec.estimator.along_the_record import AlongTheRecord, Noted
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.step_signals import Signal
from auditspec.estimator.subbatch.combined import Control, clipped, unclipped
from auditspec.estimator.subbatch.parts import Part, parts_of
from auditspec.estimator.subbatch.traveller import Traveller
from auditspec.progress import Advance
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step

RUN = "run"
"""Name of the recorded run among the states of a journal."""


@dataclass
class _Inside:
    """An arm inside a stage."""

    arm: Arm
    traveller: Traveller
    control: Control = field(default_factory=Control)


@dataclass(frozen=True)
class _Recorded:
    """The recorded run at one step."""

    signal: Signal
    """y"""
    whole: Signal
    """y before clipping."""
    part: Signal | None
    """y_part; None where no row is taken."""


class GoingAlong(AlongTheRecord[_Inside]):
    """Takes arms along on parts of minibatches.

    Args:
        context: what they are made of.
        prefixes: of the arms.
        share: q of the rows.
        together: fewest rows that are taken at once.
        told: of gradients, in whole ones.
    """

    def __init__(
        self, context: Context, prefixes: Prefixes, share: float, together: int, told: Advance
    ) -> None:
        super().__init__(context, prefixes, told)
        self.share, self.together = share, together
        self._run: Traveller | None = None
        """The recorded run, inside a stage."""

    def begin(self, index: int, arm: Arm, state: State) -> _Inside:
        """Begin a stage."""
        stage = self.context.record.stages[index]
        return _Inside(arm, Traveller.begin(self.engine, stage, state))

    def cross(self, index: int, inside: Sequence[_Inside], behind: int) -> None:
        """Carry every arm through one later stage, from the step `behind` on."""
        stage, engine = self.context.record.stages[index], self.engine
        every = [arm.arm for arm in inside]
        steps = engine.steps_of(stage)
        parts = list(parts_of(stage, self.share, self.together))
        signals = None
        if self.share < 1:
            self._run = self._run or Traveller.begin(engine, stage, stage.first)
            signals = self.context.recorded.signals(engine, stage, behind)
        for step, part in zip(steps[behind:], parts[behind:], strict=True):
            cost, recorded = part.gradients if part is not None else 0.0, None
            if signals is not None and self._run is not None:
                began, before = time.perf_counter(), engine.gradients
                signal, _ = next(signals)
                shared = engine.gradients - before + cost
                recorded = self._recorded(self._run, step, part, signal)
                self.spent(every, shared, began)
            for arm in inside:
                began = time.perf_counter()
                self._step(stage, arm, step, part, recorded)
                self.spent([arm.arm], cost, began)
            self.note(index, step.index + 1, inside)
        for arm in inside:
            progress = self.arms[arm.arm]
            progress.state = arm.traveller.state()
            progress.diagnostics |= arm.control.diagnostics(stage.id)
        self._run = None

    def noted(self, arm: _Inside) -> Noted:
        """Where it stands."""
        return Noted(arm.traveller.state(), asdict(arm.control))

    def resumed(self, stage: StageTrajectory, arm: Arm, noted: Noted) -> _Inside:
        """Back where it stood."""
        traveller = Traveller.begin(self.engine, stage, noted.state)
        return _Inside(arm, traveller, Control(**noted.facts))

    def beside(self) -> Mapping[str, State]:
        """Where the recorded run stands."""
        return {} if self._run is None else {RUN: self._run.state()}

    def take_up(self, stage: StageTrajectory, states: Mapping[str, State]) -> None:
        """The recorded run, back where it stood."""
        if RUN in states:
            self._run = Traveller.begin(self.engine, stage, states[RUN])

    def _recorded(self, run: Traveller, step: Step, part: Part | None, signal: Signal) -> _Recorded:
        """The recorded run's signals at a step, which it then makes."""
        theirs = run.observe(part.step) if part is not None else None
        limit = run.stage.header.clip_norm
        whole = unclipped(signal, theirs, limit) if theirs is not None else signal
        run.advance(step, signal)
        return _Recorded(signal, whole, theirs)

    def _step(
        self,
        stage: StageTrajectory,
        arm: _Inside,
        step: Step,
        part: Part | None,
        recorded: _Recorded | None,
    ) -> None:
        """Make one step of an arm."""
        limit, run = stage.header.clip_norm, arm.traveller
        if part is None and recorded is not None:
            run.advance(step, clipped(arm.control.alone(recorded.whole), limit))
        if part is None:
            return
        ours = run.observe(part.step)
        if recorded is not None and recorded.part is not None:
            arm.control.fit(ours, recorded.part)
            if not part.whole:
                ours = arm.control.combined(recorded.whole, ours, recorded.part)
        run.advance(step, clipped(ours, limit))
