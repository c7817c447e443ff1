"""Arms on their way along the record beside the recorded run, step by step, with a journal.

An estimate and its twin go together: the recorded run is made once for both.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from auditspec.errors import EstimationError
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, difference
from auditspec.estimator.forecast import interiors, state_bytes
from auditspec.estimator.interface import Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.recorded_run import Beside
from auditspec.estimator.step_signals import Signal
from auditspec.progress import Advance
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step, Trajectory


@dataclass
class ArmProgress:
    """How far an arm is on its way along the record."""

    number: int
    state: State
    """Where it stands between two stages; `NOWHERE` inside one."""
    path: dict[str, State]
    gradients: float = 0.0
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)
    given_up: bool = False


class Inside(Protocol):
    """An arm inside a stage."""

    @property
    def arm(self) -> Arm:
        """Which."""
        ...


NOWHERE = State({}, {})
"""In the place of what is not held: an arm inside a stage stands where that has it."""
InsideT = TypeVar("InsideT", bound=Inside)


@dataclass(frozen=True)
class Noted:
    """What a journal holds of an arm inside a stage."""

    state: State
    """xi, moments included, on the CPU."""
    facts: Mapping[str, Any]
    more: Mapping[str, State] = field(default_factory=dict)
    """Other states by what they are."""


@dataclass(frozen=True)
class Work:
    """What a passage is for."""

    method: str
    """The estimator's name."""
    words: str
    """To whoever waits."""
    gradients: int
    """What it takes at most, in minibatch gradients."""


class Passage(ABC, Generic[InsideT]):
    """The arms of one estimate on their way.

    Args:
        context: what they are made of.
        prefixes: of the arms.
        work: what they are made for.
    """

    def __init__(self, context: Context, prefixes: Prefixes, work: Work) -> None:
        self.context, self.engine, self.prefixes = context, context.engine, prefixes
        self.work = work
        self.inside: list[InsideT] = []
        """The arms inside the present stage."""
        self.told: Advance = lambda _: None
        """Told of gradients, in whole ones."""
        self._untold = 0.0
        self.arms = {
            arm: ArmProgress(
                number, prefixes.opening(self.engine, arm, context.run.starts), dict(entry.path)
            )
            for number, (arm, entry) in enumerate(prefixes.entries.items())
        }

    # --- what an estimate is made of --------------------------------------------------------------

    @abstractmethod
    def begin(self, index: int, arm: Arm, state: State) -> InsideT:
        """Begin a stage from a state; without moments with a fresh optimizer."""

    @abstractmethod
    def served(self, index: int) -> Sequence[Arm]:
        """The arms inside a stage that need the recorded run there."""

    def observe(self, run: Beside, index: int, step: Step) -> None:
        """Ask the recorded run what is wanted of it besides, before it makes a step."""

    @abstractmethod
    def step(self, index: int, step: Step, recorded: Signal | None) -> None:
        """Take the arms along a step; `recorded`: y_k of the recorded run, where some arm needs it."""

    @abstractmethod
    def leave(self, index: int) -> None:
        """Take the arms to the end of a stage, and leave in `arms` where they are then."""

    def keep(self, arms: frozenset[Arm] | None) -> None:
        """Take only these along; the others share the plan, and are made elsewhere."""
        if arms is not None:
            self.arms = {arm: progress for arm, progress in self.arms.items() if arm in arms}

    def give_up(self, arm: InsideT) -> None:
        """Take an arm no further: what would come of it says nothing."""
        self.arms[arm.arm].given_up = True
        self.inside.remove(arm)

    def oldest(self, behind: int) -> int:
        """The first step whose recorded signal is needed where an interrupted run had some steps behind."""
        return behind

    def recall(self, step: Step, recorded: Signal) -> None:
        """Take the recorded signal of a step that is behind."""

    @abstractmethod
    def noted(self, arm: InsideT) -> Noted:
        """What the journal is to hold of an arm inside a stage."""

    @abstractmethod
    def resumed(self, stage: StageTrajectory, arm: Arm, noted: Noted) -> InsideT:
        """The arm of which that was noted."""

    @abstractmethod
    def exact(self, arm: Arm) -> bool:
        """Whether every step that an arm makes is made as in training."""

    def judged(self, arm: Arm, made: Counterfactual) -> Counterfactual:
        """A counterfactual with what the estimate says of it besides."""
        return made

    # --- on the way -------------------------------------------------------------------------------

    def enter(self, index: int) -> bool:
        """Begin a stage from where the one before ended (`Engine.carry_over`); whether any arm makes it."""
        if not self.inside and self.context.record.stages[index].header.steps:
            for arm in self._through(index):
                began, before = time.perf_counter(), self.engine.gradients
                state = self.engine.carry_over(index, self.arms[arm].state)
                self.inside.append(self.begin(index, arm, state))
                self.arms[arm].state = NOWHERE
                self.spent([arm], self.engine.gradients - before, began)
        return bool(self.inside)

    def hand_on(self, index: int) -> None:
        """Take every arm over the end of a stage."""
        stage, made = self.context.record.stages[index], {arm.arm for arm in self.inside}
        through = self._through(index)
        for arm in self._begun(index):
            progress = self.arms[arm]
            if progress.given_up:
                continue
            if arm not in made:
                progress.state = self.prefixes.handed_on(self.engine, arm, index, progress.state)
            if not self.prefixes.carries(arm, index):
                progress.state = progress.state.without_optimizer()
            if arm in through:
                progress.path[stage.id] = progress.state.without_optimizer()
        self.inside = []

    def arrive(self) -> None:
        """Leave every arm where training ends."""
        last = self.context.record.stages[-1].id
        for progress in self.arms.values():
            if progress.given_up:
                progress.state, progress.path = NOWHERE, {}
            else:
                progress.state = progress.path.get(last) or progress.state.without_optimizer()

    def counterfactuals(self) -> Counterfactuals:
        """Every arm's, in their order, once they have arrived."""
        return {
            arm: self.judged(
                arm,
                Counterfactual(
                    arm=arm,
                    method=self.work.method,
                    exact=self.exact(arm) and self.prefixes.entries[arm].exact,
                    state=progress.state,
                    delta=self._delta(progress),
                    gradients=progress.gradients,
                    seconds=progress.seconds,
                    path=progress.path,
                    diagnostics=progress.diagnostics,
                ),
            )
            for arm, progress in self.arms.items()
        }

    def _delta(self, progress: ArmProgress) -> dict[str, Tensor]:
        final = self.context.run.final.parameters
        return {} if progress.given_up else difference(progress.state.parameters, final)

    def spent(self, arms: Sequence[Arm], gradients: float, began: float) -> None:
        """Account for what some arms share equally, and tell of it.

        Args:
            arms: those.
            gradients: that were computed for them.
            began: the time since when (`time.perf_counter`).
        """
        seconds = time.perf_counter() - began
        for arm in arms:
            self.arms[arm].gradients += gradients / len(arms)
            self.arms[arm].seconds += seconds / len(arms)
        self._untold += gradients
        self.told(int(self._untold))
        self._untold -= int(self._untold)

    def position(self, latest: int) -> tuple[dict[str, Any], dict[str, State]]:
        """What a journal is to hold of every arm that has begun by a stage."""
        states: dict[str, State] = {}
        begun = [self.arms[arm] for arm in self._begun(latest)]
        for progress in begun:
            states[str(progress.number)] = progress.state
            states |= {f"{progress.number} after {s}": end for s, end in progress.path.items()}
        facts: dict[str, Mapping[str, Any]] = {}
        for arm in self.inside:
            number, noted = str(self.arms[arm.arm].number), self.noted(arm)
            states[number], facts[number] = noted.state, noted.facts
            states |= {f"{what} of {number}": state for what, state in noted.more.items()}
        arms = {
            str(p.number): [p.gradients, p.seconds, [*p.path], p.diagnostics, p.given_up]
            for p in begun
        }
        return {"arms": arms, "inside": facts}, states

    def go_on(self, index: int, position: Mapping[str, Any], states: Mapping[str, State]) -> None:
        """Take up what `position` gave, at a stage."""
        numbered = {str(progress.number): arm for arm, progress in self.arms.items()}
        for i, (gradients, seconds, path, diagnostics, given_up) in position["arms"].items():
            progress = self.arms[numbered[i]]
            progress.state, progress.gradients, progress.seconds = states[i], gradients, seconds
            progress.path = {stage: states[f"{i} after {stage}"] for stage in path}
            progress.diagnostics, progress.given_up = diagnostics, given_up
        for i, facts in position["inside"].items():
            stage, of = self.context.record.stages[index], f" of {i}"
            more = {n.removesuffix(of): state for n, state in states.items() if n.endswith(of)}
            self.inside.append(self.resumed(stage, numbered[i], Noted(states[i], facts, more)))

    def _begun(self, index: int) -> list[Arm]:
        return [arm for arm in self.arms if self.prefixes.entries[arm].stage <= index]

    def _through(self, index: int) -> list[Arm]:
        stage = self.context.record.stages[index].id
        return [
            arm
            for arm in self._begun(index)
            if stage not in arm.omitted and not self.arms[arm].given_up
        ]


class AlongTheRecord(Estimator):
    """An estimator whose arms go along the record, and its twin's arms with them."""

    several = True
    budgeted = True
    uses_recorded_gradients = True
    divisible = True

    @abstractmethod
    def passage(self, context: Context, arms: Sequence[Arm]) -> Passage[Any]:
        """The arms, ready to go.

        Raises:
            RecordError: if the record has no such stage.
            BudgetError: if the budget is too small.
            EstimationError: if a later stage was recorded without its steps.
            UnsupportedError: naming the feature of the run that it does not cover.
        """

    def own_passage(self, context: Context, arms: Sequence[Arm]) -> Passage[Any]:
        """Those of the arms that are made here."""
        passage = self.passage(context, arms)
        passage.keep(context.only)
        return passage

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals, in their order, under one budget.

        Its journal notes every step. Of what is known, an arm's end of a stage serves, except where the next goes on with
        moments, which a path does not hold.

        Returns:
            By arm. What the recorded run costs is shared equally by the arms that it served.

        Raises:
            RecordError: if the record has no such stage.
            BudgetError: if the budget is too small.
            EstimationError: if a later stage was recorded without its steps, or its code fails.
            UnsupportedError: naming the feature of the run that it does not cover, or if an arm replaces something.
        """
        self.require_arms(arms)
        return _go_along(context, [self.own_passage(context, arms)])[0]

    def together(
        self, twin: Estimator, context: Context, arms: Sequence[Arm]
    ) -> tuple[Counterfactuals, Counterfactuals] | None:
        """Both in one pass along the record."""
        self.require_arms(arms)
        mine = self.own_passage(context, arms)
        if all(mine.exact(arm) for arm in mine.arms):
            return _go_along(context, [mine])[0], {}
        if not isinstance(twin, AlongTheRecord):
            return None
        try:
            passages = [mine, twin.own_passage(context, arms)]
        except EstimationError:  # too little for it
            return None
        found, others = _go_along(context, passages)
        return found, others


def held_along(
    record: Trajectory, prefixes: Prefixes, noted: float, *, beside: float = 0.0, twin: bool
) -> tuple[float, int]:
    """Bytes of memory and of disk that arms on their way take at most, in the last stage.

    Held are the arms inside it, the ends of the stages before, the recorded run with two signals of it and two of an arm, the
    model's gradient, and a copy of the arms inside, while they are written. On the disk a note stands beside the one before; at the end it stands beside the finished estimates.

    Args:
        record: the trainer's.
        prefixes: of the arms.
        noted: bytes that are noted of an arm inside a stage.
        beside: bytes that one holds besides.
        twin: whether as many arms of a twin go along.
    """
    (weights, moments), (interior, before) = state_bytes(record), interiors(prefixes)
    passages = 2 if twin else 1
    last = len(prefixes.stages) - 1
    inside = passages * sum(last in prefixes.trained(arm) for arm in prefixes.arms)
    note = inside * noted + passages * before * weights
    memory = inside * (noted + beside) + passages * before * weights
    memory += (weights + moments) + 5 * weights + inside * noted
    return memory, int(max(2 * note, note + passages * interior * weights))


def _go_along(context: Context, passages: Sequence[Passage[Any]]) -> list[Counterfactuals]:
    """Take every arm of some passages to the end of training, from where the journal has them."""
    total = sum(passage.work.gradients for passage in passages)
    with context.progress.phase(passages[0].work.words, total) as told:
        for passage in passages:
            passage.told = told
        first, behind = _go_on(context, passages)
        for index in range(first, len(context.record.stages)):
            with context.engine.training():
                crossing = [passage for passage in passages if passage.enter(index)]
                if crossing:
                    _cross(context, passages, crossing, index, behind)
            for passage in passages:
                passage.hand_on(index)
            if index + 1 < len(context.record.stages):
                _note(context, passages, index + 1, 0)
            behind = 0
        for passage in passages:
            passage.arrive()
    return [passage.counterfactuals() for passage in passages]


def _cross(
    context: Context,
    passages: Sequence[Passage[Any]],
    crossing: Sequence[Passage[Any]],
    index: int,
    behind: int,
) -> None:
    """Take all arms that are inside a stage through it, the recorded run beside them where one needs it."""
    stage, engine = context.record.stages[index], context.engine
    asking = [passage for passage in crossing if passage.served(index)]
    start = min([behind, *(passage.oldest(behind) for passage in asking)])
    run = context.recorded.enter(engine, stage, start) if asking else None
    for step in engine.steps_of(stage)[start:]:
        ahead = step.index >= behind
        recorded = None
        if run is not None:
            for passage in asking if ahead else ():
                passage.observe(run, index, step)
            began, before = time.perf_counter(), run.gradients
            recorded = run.make(step)
            for passage in asking if ahead else ():
                share = (run.gradients - before) / len(asking)
                passage.spent(passage.served(index), share, began)
        for passage in crossing:
            if ahead:
                passage.step(index, step, recorded if passage in asking else None)
            elif recorded is not None:
                passage.recall(step, recorded)
        if ahead:
            _note(context, passages, index, step.index + 1)
    for passage in crossing:
        passage.leave(index)


def _note(context: Context, passages: Sequence[Passage[Any]], index: int, behind: int) -> None:
    """Note where every arm stands: before a stage, or inside one with some steps behind."""
    if not context.journal.due:
        return
    positions: list[dict[str, Any]] = []
    states: dict[str, State] = {}
    for number, passage in enumerate(passages):
        position, own = passage.position(index if behind else index - 1)
        positions.append(position)
        states |= {f"{number} {name}": state for name, state in own.items()}
    context.journal.save({"stage": index, "behind": behind, "passages": positions}, states)


def _go_on(context: Context, passages: Sequence[Passage[Any]]) -> tuple[int, int]:
    """Take up what was noted: the stage to go on with, and its steps behind."""
    noted = context.journal.load()
    if noted is None:
        return 0, 0
    position, states = noted
    for number, (passage, own) in enumerate(zip(passages, position["passages"], strict=True)):
        lead = f"{number} "
        named = {n.removeprefix(lead): s for n, s in states.items() if n.startswith(lead)}
        passage.go_on(position["stage"], own, named)
    return position["stage"], position["behind"]
