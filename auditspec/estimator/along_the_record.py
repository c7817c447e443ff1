"""Several arms on their way along the record, stage by stage, with a journal."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.progress import Advance
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory


@dataclass
class ArmProgress:
    """How far an arm is on its way along the record."""

    number: int
    state: State
    """Where it stands between two stages."""
    path: dict[str, State]
    gradients: float = 0.0
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)


class Inside(Protocol):
    """An arm inside a stage."""

    @property
    def arm(self) -> Arm:
        """Which."""
        ...


InsideT = TypeVar("InsideT", bound=Inside)


@dataclass(frozen=True)
class Noted:
    """What a journal holds of an arm inside a stage."""

    state: State
    """xi, moments included, on the CPU."""
    facts: Mapping[str, Any]
    more: Mapping[str, State] = field(default_factory=dict)
    """Other states by what they are."""


class AlongTheRecord(ABC, Generic[InsideT]):
    """Takes arms along.

    Args:
        context: what they are made of.
        prefixes: of the arms.
        told: of gradients, in whole ones.
    """

    def __init__(self, context: Context, prefixes: Prefixes, told: Advance) -> None:
        self.context, self.engine, self.prefixes = context, context.engine, prefixes
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
        first, behind, inside = self._go_on()
        for index, stage in enumerate(stages[first:], first):
            begun = [arm for arm in self.arms if entries[arm].stage <= index]
            through = [arm for arm in begun if stage.id not in arm.omitted]
            if through and stage.header.steps:
                with self.engine.training():
                    inside = inside or [self._enter(index, arm) for arm in through]
                    self.cross(index, inside, behind)
            for arm in begun:
                progress = self.arms[arm]
                if arm not in through or not stage.header.steps:
                    progress.state = self.prefixes.handed_on(
                        self.engine, arm, index, progress.state
                    )
                if arm in through:
                    progress.path[stage.id] = progress.state.without_optimizer()
            self.note(index + 1, 0, ())
            behind, inside = 0, []
        for progress in self.arms.values():
            end = progress.path.get(stages[-1].id)
            progress.state = end or progress.state.without_optimizer()

    @abstractmethod
    def begin(self, index: int, arm: Arm, state: State) -> InsideT:
        """Begin a stage from a state; without moments with a fresh optimizer."""

    @abstractmethod
    def cross(self, index: int, inside: Sequence[InsideT], behind: int) -> None:
        """Carry every arm through a stage, and leave in `arms` how far it is then.

        Args:
            index: of the stage.
            inside: the arms.
            behind: steps that an interrupted run accounted for.
        """

    @abstractmethod
    def noted(self, arm: InsideT) -> Noted:
        """What the journal is to hold of an arm inside a stage."""

    @abstractmethod
    def resumed(self, stage: StageTrajectory, arm: Arm, noted: Noted) -> InsideT:
        """The arm of which that was noted."""

    def beside(self) -> Mapping[str, State]:
        """What the journal is to hold inside a stage besides the arms, by names of its own."""
        return {}

    def take_up(self, stage: StageTrajectory, states: Mapping[str, State]) -> None:
        """Go on with what was noted `beside`; other names are of arms."""

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
        self._tell(int(self._untold))
        self._untold -= int(self._untold)

    def note(self, stage: int, behind: int, inside: Sequence[InsideT]) -> None:
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
        facts: dict[str, Mapping[str, Any]] = {}
        for arm in inside:
            number, noted = str(self.arms[arm.arm].number), self.noted(arm)
            states[number], facts[number] = noted.state, noted.facts
            states |= {f"{what} of {number}": state for what, state in noted.more.items()}
        states |= self.beside() if inside else {}
        position = {
            "stage": stage,
            "behind": behind,
            "arms": {
                str(p.number): [p.gradients, p.seconds, [*p.path], p.diagnostics] for p in begun
            },
            "inside": facts,
        }
        journal.save(position, states)

    def _enter(self, index: int, arm: Arm) -> InsideT:
        """Begin a stage from where the one before ended (`Engine.carry_over`)."""
        began, before = time.perf_counter(), self.engine.gradients
        inside = self.begin(index, arm, self.engine.carry_over(index, self.arms[arm].state))
        self.spent([arm], self.engine.gradients - before, began)
        return inside

    def _go_on(self) -> tuple[int, int, list[InsideT]]:
        """What `note` noted: the stage to go on with, its steps behind, and the arms inside it."""
        noted = self.context.journal.load()
        if noted is None:
            return 0, 0, []
        position, states = noted
        numbered = {str(progress.number): arm for arm, progress in self.arms.items()}
        for i, (gradients, seconds, path, diagnostics) in position["arms"].items():
            progress = self.arms[numbered[i]]
            progress.state, progress.gradients, progress.seconds = states[i], gradients, seconds
            progress.path = {stage: states[f"{i} after {stage}"] for stage in path}
            progress.diagnostics = diagnostics
        inside = []
        for i, facts in position["inside"].items():
            stage, of = self.context.record.stages[position["stage"]], f" of {i}"
            more = {n.removesuffix(of): state for n, state in states.items() if n.endswith(of)}
            inside.append(self.resumed(stage, numbered[i], Noted(states[i], facts, more)))
        if inside:
            self.take_up(stage, states)
        return position["stage"], position["behind"], inside
