"""Several arms on their way through simulated stages, each beside the recorded run in the same simulation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from auditspec.estimator.counterfactual import difference, norm
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.simulated.anchored import anchored
from auditspec.estimator.simulated.simulation import Simulation
from auditspec.progress import Advance
from auditspec.record.generators import seed
from auditspec.record.state import State, capture, restore
from auditspec.record.trajectory import StageTrajectory

RUN = "run"
"""Name of the simulated run's end among the states of a journal."""


@dataclass
class ArmProgress:
    """How far an arm is."""

    number: int
    state: State
    """Where it stands between two stages."""
    path: dict[str, State] = field(default_factory=dict)
    gradients: float = 0.0
    seconds: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)


class Alongside:
    """Takes arms along.

    Args:
        context: what they are made of.
        prefixes: of the arms.
        simulation: of every stage.
        told: of gradients, in whole ones.
    """

    def __init__(
        self, context: Context, prefixes: Prefixes, simulation: Simulation, told: Advance
    ) -> None:
        self.context, self.engine, self.prefixes = context, context.engine, prefixes
        self.simulation = simulation
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
        first, done, run = self._go_on()
        for index, stage in enumerate(stages[first:], first):
            begun = [arm for arm in self.arms if entries[arm].stage <= index]
            through = [arm for arm in begun if stage.id not in arm.omitted]
            if through and stage.header.steps:
                self._cross(index, through, done, run)
            for arm in begun:
                progress = self.arms[arm]
                if arm not in through or not stage.header.steps:
                    progress.state = self.prefixes.handed_on(
                        self.engine, arm, index, progress.state
                    )
                if not self.prefixes.carries(arm, index):
                    progress.state = progress.state.without_optimizer()
                if arm in through:
                    progress.path[stage.id] = progress.state.without_optimizer()
            done, run = 0, None
            self._note(index + 1, done, run)
        for progress in self.arms.values():
            end = progress.path.get(stages[-1].id)
            progress.state = end or progress.state.without_optimizer()

    def _cross(self, index: int, through: Sequence[Arm], done: int, run: State | None) -> None:
        """Carry every arm through one stage but the first `done`, which are behind it; `run` is known from then on."""
        stage = self.context.record.stages[index]
        beside = not self.simulation.as_recorded(stage)
        if beside and run is None:
            first = self.context.run.starts.get(stage.id) or stage.first
            run = self._train(stage, first, through)
            self._note(index, 0, run)
        for place, arm in enumerate(through[done:], done + 1):
            progress = self.arms[arm]
            begin = self.engine.carry_over(index, progress.state)
            progress.state = self._train(stage, begin, [arm])
            if run is not None:
                last = self.context.run.path.get(stage.id) or stage.last
                progress.state = anchored(last, progress.state, run)
                progress.diagnostics[f"{stage.id}: apart"] = _apart(stage, run)
            self._note(index, place, run)

    def _train(self, stage: StageTrajectory, begin: State, served: Sequence[Arm]) -> State:
        """Make every step of a simulated stage."""
        began, declared = time.perf_counter(), self.context.declared.get(stage.id)
        optimizer = self.engine.optimizer(stage)
        restore(begin, self.engine.model, optimizer)
        each = self.simulation.gradients(stage, declared) / stage.header.steps
        with self.engine.training():
            for step in self.simulation.steps(stage, declared, self.engine.datasets):
                seed(self.simulation.seed(stage, step))  # of a device's own random numbers too
                self.engine.update(self.engine.gradient(stage, step, optimizer))
                self._advance(each)
        for arm in served:
            self.arms[arm].gradients += each * stage.header.steps / len(served)
            self.arms[arm].seconds += (time.perf_counter() - began) / len(served)
        return capture(self.engine.model, optimizer)

    def _advance(self, gradients: float) -> None:
        self._untold += gradients
        self._tell(int(self._untold))
        self._untold -= int(self._untold)

    def _note(self, stage: int, done: int, run: State | None) -> None:
        """Note where every arm stands: before a stage, or with some arms behind it."""
        journal = self.context.journal
        if not journal.due:
            return
        states: dict[str, State] = {} if run is None else {RUN: run}
        for progress in self.arms.values():
            states[str(progress.number)] = progress.state
            states |= {f"{progress.number} after {s}": end for s, end in progress.path.items()}
        facts = [[p.gradients, p.seconds, [*p.path], p.diagnostics] for p in self.arms.values()]
        journal.save({"stage": stage, "done": done, "arms": facts}, states)

    def _go_on(self) -> tuple[int, int, State | None]:
        """What `_note` noted: the stage to go on with, how many arms are behind it, and where the run ended it."""
        noted = self.context.journal.load()
        if noted is None:
            return 0, 0, None
        position, states = noted
        for progress, facts in zip(self.arms.values(), position["arms"], strict=True):
            progress.gradients, progress.seconds, path, progress.diagnostics = facts
            progress.state = states[str(progress.number)]
            progress.path = {s: states[f"{progress.number} after {s}"] for s in path}
        return position["stage"], position["done"], states.get(RUN)


def _apart(stage: StageTrajectory, run: State) -> float:
    """||theta_b' - theta_b|| / ||theta_b - theta_a||: how far the simulated run ends from the recorded one."""
    first, last = stage.first.parameters, stage.last.parameters
    moved = norm(difference(last, first))
    return norm(difference(run.parameters, last)) / moved if moved else 0.0
