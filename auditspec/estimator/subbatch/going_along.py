"""Several arms on their way along the record, in step with the recorded run, on parts of its minibatches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.step_signals import Signal
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.subbatch.combined import Control, clipped, unclipped
from auditspec.estimator.subbatch.parts import Part, parts_of
from auditspec.estimator.subbatch.traveller import Traveller
from auditspec.progress import Advance
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step

RUN = "run"
"""Name of the recorded run among the states of a journal."""


@dataclass
class ArmProgress:
    """How far an arm is on its way along the record."""

    number: int
    state: State
    """Where it stands between two stages."""
    path: dict[str, State] = field(default_factory=dict)
    gradients: float = 0.0
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)


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


class GoingAlong:
    """Takes arms along.

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
        self.context, self.engine, self.prefixes = context, context.engine, prefixes
        self.share, self.together = share, together
        self._tell, self._untold = told, 0.0
        self.arms = {
            arm: ArmProgress(
                number, prefixes.opening(self.engine, arm, context.run.starts), dict(entry.path)
            )
            for number, (arm, entry) in enumerate(prefixes.entries.items())
        }

    def run(self) -> None:
        """Take every arm to the end of training, from where the journal has it."""
        stages, entries = self.context.record.stages, self.prefixes.entries
        first, behind, inside, run = self._go_on()
        for index, stage in enumerate(stages[first:], first):
            begun = [arm for arm in self.arms if entries[arm].stage <= index]
            through = [arm for arm in begun if stage.id not in arm.omitted]
            if through and stage.header.steps:
                with self.engine.training():
                    inside = inside or [self._enter(index, arm) for arm in through]
                    self._cross(index, inside, run, behind)
            for arm in begun:
                progress = self.arms[arm]
                if arm not in through or not stage.header.steps:
                    progress.state = self.prefixes.handed_on(
                        self.engine, arm, index, progress.state
                    )
                if arm in through:
                    progress.path[stage.id] = progress.state.without_optimizer()
            self._note(index + 1, 0, (), None)
            behind, inside, run = 0, [], None
        for progress in self.arms.values():
            end = progress.path.get(stages[-1].id)
            progress.state = end or progress.state.without_optimizer()

    def _enter(self, index: int, arm: Arm) -> _Inside:
        """Begin a stage from where the one before ended (`Engine.carry_over`)."""
        stage = self.context.record.stages[index]
        begin = self.engine.carry_over(index, self.arms[arm].state)
        return _Inside(arm, Traveller.begin(self.engine, stage, begin))

    def _cross(
        self, index: int, inside: Sequence[_Inside], run: Traveller | None, behind: int
    ) -> None:
        """Carry every arm through one later stage, from the step `behind` on."""
        stage, engine = self.context.record.stages[index], self.engine
        steps = engine.steps_of(stage)
        parts = list(parts_of(stage, self.share, self.together))
        signals = None
        if self.share < 1:
            run = run or Traveller.begin(engine, stage, stage.first)
            signals = self.context.recorded.signals(engine, stage, behind)
        for step, part in zip(steps[behind:], parts[behind:], strict=True):
            recorded = None
            if signals is not None and run is not None:
                began, before = time.perf_counter(), engine.gradients
                signal, _ = next(signals)
                cost = engine.gradients - before + (part.gradients if part is not None else 0.0)
                recorded = self._recorded(run, step, part, signal)
                self._spent(inside, cost, time.perf_counter() - began)
            for arm in inside:
                began = time.perf_counter()
                self._step(stage, arm, step, part, recorded)
                cost = part.gradients if part is not None else 0.0
                self._spent([arm], cost, time.perf_counter() - began)
            self._note(index, step.index + 1, inside, run)
        for arm in inside:
            progress = self.arms[arm.arm]
            progress.state = arm.traveller.state()
            progress.diagnostics |= arm.control.diagnostics(stage.id)

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

    def _spent(self, inside: Sequence[_Inside], gradients: float, seconds: float) -> None:
        """Note what was spent for some arms equally, and tell of it."""
        for arm in inside:
            self.arms[arm.arm].gradients += gradients / len(inside)
            self.arms[arm.arm].seconds += seconds / len(inside)
        self._untold += gradients
        self._tell(int(self._untold))
        self._untold -= int(self._untold)

    def _note(
        self, stage: int, behind: int, inside: Sequence[_Inside], run: Traveller | None
    ) -> None:
        """Note where every begun arm stands: before a stage, or inside one with steps behind."""
        journal = self.context.journal
        if not journal.due:
            return
        latest = stage if inside else stage - 1
        begun = [self.arms[a] for a, e in self.prefixes.entries.items() if e.stage <= latest]
        states: dict[str, State] = {}
        for progress in begun:
            states[str(progress.number)] = progress.state
            states |= {f"{progress.number} after {s}": end for s, end in progress.path.items()}
        controls: dict[str, dict[str, float]] = {}
        for arm in inside:
            number = str(self.arms[arm.arm].number)
            states[number] = arm.traveller.state()
            controls[number] = asdict(arm.control)
        if run is not None:
            states[RUN] = run.state()
        position = {
            "stage": stage,
            "behind": behind,
            "arms": {
                str(p.number): [p.gradients, p.seconds, [*p.path], p.diagnostics] for p in begun
            },
            "inside": controls,
        }
        journal.save(position, states)

    def _go_on(self) -> tuple[int, int, list[_Inside], Traveller | None]:
        """What `_note` noted: the stage to go on with, its steps behind, the arms inside it, and the recorded run."""
        noted = self.context.journal.load()
        if noted is None:
            return 0, 0, [], None
        position, states = noted
        index, inside, run = position["stage"], list[_Inside](), None
        numbered = {str(progress.number): arm for arm, progress in self.arms.items()}
        for i, (gradients, seconds, path, diagnostics) in position["arms"].items():
            progress = self.arms[numbered[i]]
            progress.state, progress.gradients, progress.seconds = states[i], gradients, seconds
            progress.path = {stage: states[f"{i} after {stage}"] for stage in path}
            progress.diagnostics = diagnostics
        for i, control in position["inside"].items():
            stage = self.context.record.stages[index]
            traveller = Traveller.begin(self.engine, stage, states[i])
            inside.append(_Inside(numbered[i], traveller, Control(**control)))
        if RUN in states:
            run = Traveller.begin(self.engine, self.context.record.stages[index], states[RUN])
        return index, position["behind"], inside, run
