"""Paired replay: the counterfactual from far fewer gradients than steps, beside the recorded run.

The counterfactual arm is carried through every later step with the optimizer's own update, but its
gradient h_k is computed at a few sampled steps only (`schedule`). In between, the recorded run's gradient
g_k on the same minibatch stands in, corrected by the last differences seen (`control_variate`).

Window by window: a predictor goes from one sampled step s to the next, n, h_n is computed there (the
window's only gradient), and a corrector goes from s to n once more with h_n known. Signals are clipped
gradients and, of BatchNorm, batch statistics. With every step sampled this is exact replay. Only first
gradients are needed: any optimizer, model, and attention kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from torch.optim import Optimizer

from auditspec.engine.interface import Engine
from auditspec.errors import BudgetError
from auditspec.estimator.along_the_record import (
    AlongTheRecord,
    Noted,
    Passage,
    Work,
    held_along,
)
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.forecast import state_bytes
from auditspec.estimator.interface import Context, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.control_variate import ControlVariate, Window
from auditspec.estimator.paired.sampled_steps import Schedule, schedule, smallest_budget
from auditspec.estimator.paired.twin import astray, unreliable
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.requirements import require_known_statistics, steps_missing
from auditspec.estimator.step_signals import (
    Signal,
    advance,
    observe,
    require_known_buffers,
    signal_of,
    state_of,
)
from auditspec.messages import message
from auditspec.record.codec import tensors_digest
from auditspec.record.state import State, capture, put_back, restore, snapshot
from auditspec.record.trajectory import StageTrajectory, Step, Trajectory

HALF_A_WINDOW = 0.5
TELLING = 10
"""Windows of a stage after which an arm may be found astray before the stage ends."""
SIGNAL = "signal"
"""What a journal calls h_s."""


@dataclass(frozen=True)
class PairedReplay(AlongTheRecord):
    """Replay of sampled steps, the recorded gradients in between, under one budget for all arms."""

    shift: float = 0.0
    """Moves the sampled steps by this part of a window."""

    name = "paired-replay"
    title = "Paired replay"
    words = message("paired-replay-does")

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """Steps, floating buffers whose update is known, and enough gradients for the fewest samples."""
        stages = record.stages
        least = 0 if steps_missing(stages[1:]) else self.least(record, arms, terms)

        def enough() -> None:
            if terms.budget is not None and terms.budget < least:
                raise BudgetError(
                    f"the budget is {terms.budget:,} gradients; {self.name} needs {least:,}",
                    f"raise estimator.budget.gradients to {least:,} or more",
                )

        return (
            *super().requirements(record, arms, terms),
            Requirement(
                "no floating buffers but BatchNorm's",
                lambda: require_known_statistics(stages, self.name),
            ),
            Requirement(f"a budget of {least:,} gradients or more", enough),
        )

    def least(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> int:
        """With the fewest samples, or with every step where that is cheaper."""
        return smallest_budget(record, arms, terms.recorded, terms.known)

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """Its schedule under the budget; exact."""
        sampling = self._schedule(record, arms, terms)
        prefixes, stages = Prefixes(record, arms, terms.known), record.stages
        shares = dict.fromkeys(prefixes.arms, 0.0)
        for (arm, j), sampled in sampling.sampled.items():
            shares[arm] += sum(len(stages[j].steps[k].batches) for k in sampled)
        for j, cost in sampling.observed.items():
            served = [arm for arm, k in sampling.skipping if k == j]
            for arm in served:
                shares[arm] += cost / len(served)
        weights, moments = state_bytes(record)
        trained = [j for arm in prefixes.arms for j in prefixes.trained(arm)]
        paid = sampling.gradients
        window = max(1.0, sum(len(stages[j].steps) for j in trained) / paid) if paid else 1.0
        exact = all(map(sampling.exact, prefixes.arms))
        # an arm is noted with h_s, and has an optimizer besides
        memory, disk = held_along(
            record, prefixes, 2 * weights + moments, beside=moments, twin=not exact
        )
        return Forecast(
            {arm: round(share, 3) for arm, share in shares.items()},
            gradients=float(paid),
            memory=memory + weights * window * (1 if exact else 2),
            disk=disk,
            light=float(
                sum(_light(stages[j], sampled) for (_, j), sampled in sampling.sampled.items())
            ),
        )

    def light_step(
        self, engine: Engine, stage: StageTrajectory
    ) -> tuple[Callable[[], object], float] | None:
        """An arm's step between two sampled ones."""
        step, optimizer = stage.steps[0], engine.optimizer(stage)
        restore(stage.first, engine.model, optimizer)
        with engine.training():
            signal = observe(engine, stage, step, optimizer)
        window, variate = Window(signal, signal, signal, signal), ControlVariate()

        def make() -> None:
            advance(engine, optimizer, step, variate.between(window, signal, HALF_A_WINDOW))

        return make, 0.0

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """The budget, whose gradients of the recorded run cost nothing, and where arms begin."""
        entries = Prefixes(context.record, arms, context.known).entries.values()
        return {
            "gradients": self._budget(context.record, arms, context),
            "shared": sorted(context.recorded.shared),
            "begun": [[entry.stage, _state_digest(entry.state)] for entry in entries],
        }

    def twin(self) -> PairedReplay:
        """Sampled steps moved by half a window."""
        return replace(self, shift=HALF_A_WINDOW)

    def passage(self, context: Context, arms: Sequence[Arm]) -> _PairedPassage:
        """The arms on their sampled steps.

        Their diagnostics say whether each starts from untrained weights, and of every later stage how well its
        gradients were foretold (`ControlVariate.diagnostics`).

        Raises:
            RecordError: if the record has no such stage.
            BudgetError: if the budget is too small.
            EstimationError: if a later stage was recorded without its steps.
            UnsupportedError: if training changes floating buffers other than BatchNorm's.
        """
        sampling = self._schedule(context.record, arms, context)
        require_known_buffers(context.engine, self.name)
        words = "replaying other steps, for the error" if self.shift else "replaying sampled steps"
        work = Work(self.name, words, self._budget(context.record, arms, context))
        prefixes = Prefixes(context.record, arms, context.known)
        return _PairedPassage(context, prefixes, work, sampling)

    def _schedule(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Schedule:
        budget = self._budget(record, arms, terms)
        return schedule(record, arms, budget, self.shift, terms.recorded, terms.known)

    def _budget(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> int:
        """What may be spent; without a limit, what samples every step."""
        if terms.budget is not None:
            return terms.budget
        return round(sum(Prefixes(record, arms, terms.known).gradients().values()))


@dataclass
class _ArmInStage:
    """An arm inside one later stage."""

    arm: Arm
    optimizer: Optimizer
    sampled: Sequence[int]
    state: State
    """xi at the last sampled step s."""
    signal: Signal
    """h_s"""
    window: int = 0
    """Number of the window: s = sampled[window]."""
    variate: ControlVariate = field(default_factory=ControlVariate)

    @property
    def start(self) -> int:
        """The sampled step s that begins the window."""
        return self.sampled[self.window]

    def end(self, steps: int) -> int:
        """The sampled step n that ends the window; the stage's end for the last."""
        return [*self.sampled, steps][self.window + 1]


class _PairedPassage(Passage[_ArmInStage]):
    """Several arms on their way along the record, in step with the recorded run."""

    def __init__(
        self, context: Context, prefixes: Prefixes, work: Work, sampling: Schedule
    ) -> None:
        super().__init__(context, prefixes, work)
        self.sampling = sampling
        self._recorded: dict[int, Signal] = {}
        """Signals of the recorded run since the earliest open window."""
        for arm, progress in self.arms.items():
            untrained = _begins_untrained(context.record.stages, arm)
            progress.diagnostics["untrained"] = float(untrained)

    def begin(self, index: int, arm: Arm, state: State) -> _ArmInStage:
        """Begin a stage with its first sample."""
        stage = self.context.record.stages[index]
        optimizer = self.engine.optimizer(stage)
        restore(state, self.engine.model, optimizer)
        begun = snapshot(self.engine.model, optimizer)
        signal = observe(self.engine, stage, self.engine.steps_of(stage)[0], optimizer)
        return _ArmInStage(arm, optimizer, self.sampling.sampled[arm, index], begun, signal)

    def served(self, index: int) -> Sequence[Arm]:
        """Those that skip a step."""
        return [arm.arm for arm in self.inside if (arm.arm, index) in self.sampling.skipping]

    def oldest(self, behind: int) -> int:
        """Where the earliest open window begins."""
        return min([behind, *(arm.start for arm in self.inside)])

    def recall(self, step: Step, recorded: Signal) -> None:
        """A signal of an open window."""
        self._recorded[step.index] = recorded

    def step(self, index: int, step: Step, recorded: Signal | None) -> None:
        """Close the windows that end at this step."""
        if recorded is not None:
            self._recorded[step.index] = recorded
        self._close(index, step.index)

    def leave(self, index: int) -> None:
        """Close the last windows; every arm stands where its own ended."""
        stage = self.context.record.stages[index]
        self._close(index, len(stage.steps))
        for arm in self.inside:
            put_back(arm.state, self.engine.model, arm.optimizer)
            progress = self.arms[arm.arm]
            progress.state = capture(self.engine.model, arm.optimizer)
            progress.diagnostics |= arm.variate.diagnostics(stage.id)
        self._recorded = {}

    def exact(self, arm: Arm) -> bool:
        """Where every step is sampled."""
        return self.sampling.exact(arm)

    def judged(self, arm: Arm, made: Counterfactual) -> Counterfactual:
        """With why nobody can tell its error, if that is so."""
        return replace(made, unreliable=unreliable(arm, made.diagnostics))

    def _close(self, index: int, n: int) -> None:
        """Close the windows that end at step n; only signals since the earliest open one are held."""
        stage = self.context.record.stages[index]
        for arm in [arm for arm in self.inside if n == arm.end(len(stage.steps))]:
            began, before = time.perf_counter(), self.engine.gradients
            self._window(stage, arm, n, self._recorded)
            self.spent([arm.arm], self.engine.gradients - before, began)
            foretold = arm.variate.diagnostics(stage.id)
            if (arm.window >= TELLING or n == len(stage.steps)) and astray(foretold) is not None:
                self.arms[arm.arm].diagnostics |= foretold
                self.give_up(arm)
        oldest = min((arm.start for arm in self.inside), default=n)
        self._recorded = {k: signal for k, signal in self._recorded.items() if k >= oldest}

    def noted(self, arm: _ArmInStage) -> Noted:
        """Where its open window begins."""
        put_back(arm.state, self.engine.model, arm.optimizer)
        return Noted(
            capture(self.engine.model, arm.optimizer),
            {"window": arm.window, "variate": asdict(arm.variate)},
            {SIGNAL: state_of(arm.signal)},
        )

    def resumed(self, stage: StageTrajectory, arm: Arm, noted: Noted) -> _ArmInStage:
        """Back at where its open window begins."""
        optimizer = self.engine.optimizer(stage)
        restore(noted.state, self.engine.model, optimizer)
        return _ArmInStage(
            arm,
            optimizer,
            self.sampling.sampled[arm, self.context.record.index(stage.id)],
            snapshot(self.engine.model, optimizer),
            signal_of(noted.more[SIGNAL], self.engine.device),
            noted.facts["window"],
            ControlVariate(**noted.facts["variate"]),
        )

    def _window(
        self, stage: StageTrajectory, arm: _ArmInStage, n: int, recorded: Mapping[int, Signal]
    ) -> None:
        """One window [s, n): predict, compute the gradient at n, correct."""
        s, steps = arm.start, self.engine.steps_of(stage)
        put_back(arm.state, self.engine.model, arm.optimizer)
        self._carry(stage, arm, n, recorded, None)
        if n < len(steps):
            h_n = observe(self.engine, stage, steps[n], arm.optimizer)
            if recorded:
                arm.variate.fit(arm.signal, recorded[s], h_n, recorded[n])
            if n > s + 1:
                put_back(arm.state, self.engine.model, arm.optimizer)
                self._carry(stage, arm, n, recorded, h_n)
            arm.signal = h_n
            arm.window += 1
        arm.state = snapshot(self.engine.model, arm.optimizer)

    def _carry(
        self,
        stage: StageTrajectory,
        arm: _ArmInStage,
        n: int,
        recorded: Mapping[int, Signal],
        h_n: Signal | None,
    ) -> None:
        """Carry an arm from s to n; h_n is None while it is unknown."""
        steps, s = self.engine.steps_of(stage), arm.start
        advance(self.engine, arm.optimizer, steps[s], arm.signal)
        if n > s + 1:
            g_n = None if h_n is None else recorded[n]
            window = Window(arm.signal, recorded[s], h_n, g_n)
        for k in range(s + 1, n):
            h_k = arm.variate.between(window, recorded[k], (k - s) / (n - s))
            advance(self.engine, arm.optimizer, steps[k], h_k)


def _light(stage: StageTrajectory, sampled: Sequence[int]) -> int:
    """Steps of one arm that are made without a gradient: predicted, and corrected, where a window is longer than a step."""
    ends = [*sampled[1:], len(stage.steps)]
    windows = [n - s for s, n in zip(sampled, ends, strict=True)]
    last = windows.pop() if windows else 0
    return sum(2 * n - 1 for n in windows if n > 1) + max(last - 1, 0)


def _begins_untrained(stages: Sequence[StageTrajectory], arm: Arm) -> bool:
    """Whether an arm goes on from the first weights, or from what a change of the model added."""
    first = arm.first([stage.id for stage in stages])
    return not first or (first < len(stages) and bool(stages[first].header.added))


def _state_digest(state: State | None) -> str:
    return "" if state is None else tensors_digest(state.parameters | state.buffers)
