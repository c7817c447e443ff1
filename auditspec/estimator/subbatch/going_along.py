"""Several arms on their way along the record, in step with the recorded run, on parts of its minibatches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from auditspec.estimator.along_the_record import Noted, Passage, Work
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.recorded_run import Beside
from auditspec.estimator.step_signals import Signal
from auditspec.estimator.subbatch.combined import Control, clipped, unclipped, unreliable
from auditspec.estimator.subbatch.parts import Part, parts_of
from auditspec.estimator.traveller import Traveller
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step


@dataclass
class _Inside:
    """An arm inside a stage."""

    arm: Arm
    traveller: Traveller
    control: Control = field(default_factory=Control)


class SubBatchPassage(Passage[_Inside]):
    """Takes arms along on parts of minibatches.

    Args:
        context: what they are made of.
        prefixes: of the arms.
        share: q of the rows.
        together: fewest rows that are taken at once.
        beyond: of its counterfactuals.
        work: what they are made for.
    """

    def __init__(
        self,
        context: Context,
        prefixes: Prefixes,
        work: Work,
        *,
        share: float,
        together: int,
        beyond: float,
    ) -> None:
        super().__init__(context, prefixes, work)
        self.share, self.together, self.beyond = share, together, beyond
        self._parts: dict[int, list[Part | None]] = {}
        self._theirs: Signal | None = None
        """y_part of the recorded run at the present step; None where no row is taken."""

    def begin(self, index: int, arm: Arm, state: State) -> _Inside:
        """Begin a stage."""
        stage = self.context.record.stages[index]
        return _Inside(arm, Traveller.begin(self.engine, stage, state))

    def served(self, index: int) -> Sequence[Arm]:
        """All, where some rows are not taken."""
        return [arm.arm for arm in self.inside] if self.share < 1 else []

    def observe(self, run: Beside, index: int, step: Step) -> None:
        """The recorded run on the same rows."""
        began, part = time.perf_counter(), self._part(index, step)
        self._theirs = run.observe(part.step) if part is not None else None
        if part is not None:
            self.spent(self.served(index), part.gradients, began)

    def step(self, index: int, step: Step, recorded: Signal | None) -> None:
        """Every arm on its rows, the rest from the recorded run."""
        stage, part = self.context.record.stages[index], self._part(index, step)
        if recorded is not None and self._theirs is not None:
            recorded = unclipped(recorded, self._theirs, stage.header.clip_norm)
        for arm in self.inside:
            began = time.perf_counter()
            self._step(stage, arm, step, part, recorded)
            self.spent([arm.arm], part.gradients if part is not None else 0.0, began)

    def leave(self, index: int) -> None:
        """Every arm stands where its last step led."""
        for arm in self.inside:
            progress = self.arms[arm.arm]
            progress.state = arm.traveller.state()
            progress.diagnostics |= arm.control.diagnostics(self.context.record.stages[index].id)
        self._parts = {}

    def noted(self, arm: _Inside) -> Noted:
        """Where it stands."""
        return Noted(arm.traveller.state(), asdict(arm.control))

    def resumed(self, stage: StageTrajectory, arm: Arm, noted: Noted) -> _Inside:
        """Back where it stood."""
        traveller = Traveller.begin(self.engine, stage, noted.state)
        return _Inside(arm, traveller, Control(**noted.facts))

    def exact(self, arm: Arm) -> bool:
        """Where every row is taken."""
        return self.share >= 1

    def judged(self, arm: Arm, made: Counterfactual) -> Counterfactual:
        """With how far what is read lies beyond it, and why its twin does not know its error, if that is so."""
        return replace(made, beyond=self.beyond, unreliable=unreliable(arm, made.diagnostics))

    def _part(self, index: int, step: Step) -> Part | None:
        if index not in self._parts:
            stage = self.context.record.stages[index]
            self._parts[index] = list(parts_of(stage, self.share, self.together))
        return self._parts[index][step.index]

    def _step(
        self,
        stage: StageTrajectory,
        arm: _Inside,
        step: Step,
        part: Part | None,
        recorded: Signal | None,
    ) -> None:
        """Make one step of an arm; `recorded`: y of the recorded run before clipping."""
        limit, run = stage.header.clip_norm, arm.traveller
        if part is None and recorded is not None:
            run.advance(step, clipped(arm.control.alone(recorded), limit))
        if part is None:
            return
        ours = run.observe(part.step)
        if recorded is not None and self._theirs is not None:
            arm.control.fit(ours, self._theirs)
            if not part.whole:
                ours = arm.control.combined(recorded, ours, self._theirs)
        run.advance(step, clipped(ours, limit))
