"""Which parts of several arms are the same, and so are made once.

Up to the end of a stage, an arm is what it does otherwise in the stages so far: its prefix there
(`Arm.within`). Arms with the same prefix are in the same state. An arm begins with the first stage that
it makes otherwise, or behind the last stage whose end an arm of before is known to share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from auditspec.engine.interface import Engine
from auditspec.engine.references import NO_REFERENCES, References
from auditspec.errors import EstimationError
from auditspec.estimator.counterfactual import Known
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory


@dataclass(frozen=True)
class Entry:
    """Where an arm's own way begins."""

    stage: int
    """Index of the first stage that is still to be made; the number of stages if none is."""
    state: State | None = None
    """That with which the stage before ended, known from another arm; None: the stage is the first
    that the arm makes otherwise, and begins as the recorded one."""
    path: Mapping[str, State] = field(default_factory=dict)
    """The arm's interior up to there."""
    exact: bool = True
    """Whether what is known is."""


class Prefixes:
    """The prefixes of some arms, stage by stage.

    Args:
        trajectory: the record.
        arms: counterfactual runs.
        known: runs that were made before, with their interior.

    Raises:
        RecordError: if an arm leaves out or replaces a stage that the record does not have.
        ValueError: for the recorded run itself, which is no counterfactual.
    """

    def __init__(self, trajectory: Trajectory, arms: Iterable[Arm], known: Known) -> None:
        self.trajectory = trajectory
        self.stages = [stage.id for stage in trajectory.stages]
        self.arms = tuple(dict.fromkeys(arms))
        for arm in self.arms:
            if not arm.parties:
                raise ValueError("the recorded run is no counterfactual")
            for party in sorted(arm.parties - {INITIAL}):
                trajectory.index(party)
        self.entries = {arm: self._entry(arm, known) for arm in self.arms}

    def at(self, index: int) -> dict[Arm, list[Arm]]:
        """The prefixes that are made at a stage, each with the arms that share it."""
        sharing: dict[Arm, list[Arm]] = {}
        for arm, entry in self.entries.items():
            if entry.stage <= index:
                sharing.setdefault(self.of(arm, index), []).append(arm)
        return sharing

    def of(self, arm: Arm, index: int) -> Arm:
        """The prefix of an arm at the end of a stage."""
        return arm.within(self.stages[: index + 1])

    def trained(self, arm: Arm) -> list[int]:
        """Indices of the stages that are trained to make an arm."""
        first = self.entries[arm].stage
        return [j for j, s in enumerate(self.stages) if j >= first and s not in arm.omitted]

    def gradients(self) -> dict[Arm, float]:
        """What each arm's exact replay costs; arms share the cost of what they share equally."""
        cost = [sum(len(step.batches) for step in stage.steps) for stage in self.trajectory.stages]
        total = dict.fromkeys(self.arms, 0.0)
        for index, stage in enumerate(self.stages):
            for prefix, sharing in self.at(index).items():
                for arm in sharing if stage not in prefix.omitted else ():
                    total[arm] += cost[index] / len(sharing)
        return total

    def begin(
        self,
        rerun: Engine,
        prefix: Arm,
        index: int,
        starts: Mapping[str, State] | None,
        references: References = NO_REFERENCES,
    ) -> State:
        """The state with which a stage begins in the arms whose entry it is.

        Args:
            rerun: the record, in the precision of the estimate.
            prefix: the arms' prefix at the end of the stage.
            index: the stage's.
            starts: theta_a of stages as the same re-run reaches it; others start from the recorded one.
            references: give the initial weights, where the arms replace them.
        """
        sharing = self.at(index)[prefix]
        state = next(e.state for arm in sharing if (e := self.entries[arm]).stage == index)
        if state is not None:
            return rerun.carry_over(index, state)
        if INITIAL in prefix.replaced:
            return references.start(rerun)
        stage = self.trajectory.stages[index]
        given = (starts or {}).get(stage.id)
        return stage.first if given is None else given

    def opening(self, rerun: Engine, arm: Arm, starts: Mapping[str, State] | None) -> State:
        """Where an arm stands before it is carried through anything; arguments as those of `begin`."""
        entry = self.entries[arm]
        if entry.state is not None:
            return entry.state
        return self.begin(rerun, self.of(arm, entry.stage), entry.stage, starts)

    def handed_on(self, rerun: Engine, arm: Arm, index: int, state: State) -> State:
        """Where a stage that an arm leaves out ends: where it begins.

        Args:
            rerun: the record.
            arm: it.
            index: the stage's.
            state: where the arm stands before it.
        """
        entry = self.entries[arm]
        at_its_start = index == entry.stage and entry.state is None
        return state if at_its_start else rerun.carry_over(index, state)

    def carries(self, arm: Arm, index: int) -> bool:
        """Whether a stage that the arm trains goes on with the moments of stage `index`.

        A path holds no moments.
        """
        for stage in self.trajectory.stages[index + 1 :]:
            if stage.header.boundary != "carry":
                return False
            if stage.id not in arm.omitted:
                return True
        return False

    def _entry(self, arm: Arm, known: Known) -> Entry:
        first = arm.first(self.stages)
        for index in range(len(self.stages) - 1, first - 1, -1):
            stage = self.stages[index]
            if stage in arm.omitted or self.carries(arm, index):
                continue
            for other, run in known.items():
                if stage in run.path and self.of(other, index) == self.of(arm, index):
                    path = {s: run.path[s] for s in self.stages[: index + 1] if s in run.path}
                    return Entry(index + 1, run.path[stage], path, run.exact)
        return Entry(first)


def require_references(arms: Sequence[Arm], references: References) -> None:
    """Refuse arms that replace something for which there is no reference.

    Raises:
        EstimationError: naming the party.
    """
    for arm in arms:
        for party in sorted(arm.replaced):
            there = references.weights is not None if party == INITIAL else party in references.data
            if not there:
                raise EstimationError(
                    f"'{party}' cannot be replaced: there is no reference for it",
                    "name an artifact as its reference in the spec",
                )
