"""The rule: who raised the excess over the limit, and would it be there without them?

For one sample of the evaluation examples. x is a level less (limit - tolerance), so that a model at
the limit has x = tolerance; x+ = max(x, 0), the excess.

1. x(deployed) <= tolerance: nobody is answerable (`within`).
2. Peel. In the present run, the recorded one at first, take the party with the largest rise of the
   excess. A stage is left out (or trained on reference data instead) where the model stays able
   without it; the next round looks at the run without it, where a stage that suffices alone shows a
   rise that was hidden before. A party that cannot be taken away stands accused by its path: the
   excess came with it and stayed at every later stage's end.
3. The excess is gone without those taken away: they are answerable (`removed`); much of it is gone:
   so they are for that part (`partly-removed`); otherwise those on the path (`persists`); otherwise
   nobody is found (`unexplained`).
4. Of several taken away, those count whose return alone brings the excess back.
5. Where another stage explains it as well: who needs whom?
6. Stages that caused a part by themselves count too.

A start that nobody trained is no baseline: what follows it is measured from the limit, and counts
only where it ends worse than knowing nothing. docs/verdicts.md tells all of it in plain words, with
the measurements behind the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from auditspec.answerable.courses import (
    INITIAL_STATE,
    Case,
    Course,
    Ending,
    end_of,
    start_of,
    state_after,
)
from auditspec.estimator.interventions import (
    INITIAL,
    RECORDED,
    Arm,
    change_before,
    changed_stage,
    is_stage,
)

ABLE = 0.85
"""Share of the deployed model's skill that a run must keep for its levels to be read."""
TRAINED = 0.5
"""Skill from which on a state that nobody trained is a baseline all the same."""
PIECE = 0.25
"""Smallest rise that is looked at, in tolerances: a fault may come in pieces."""
MATERIAL = 0.2
"""Smallest part that matters, in shares of the excess, beside the tolerance."""
FIRM = 0.9
"""Share of the draws that must be beyond the bar for it to be more than chance."""


class MissingArmError(Exception):
    """The rule needs a run that has not been made."""

    def __init__(self, arm: Arm) -> None:
        super().__init__(" ".join(arm.name))
        self.arm = arm


@dataclass(frozen=True)
class Outcome:
    """Where the rule ended."""

    parties: frozenset[str]
    """Who is answerable; empty for `within` and `unexplained`."""
    ending: Ending
    removed: Arm = RECORDED
    """The run in which those were taken away who can be, without the excess or with the least."""
    joint: bool = False
    """Whether no one of those taken away brings the excess back alone."""
    untested: frozenset[str] = frozenset()
    """Parties that raised the excess further, and of which nothing more can be told."""
    excess: float = 0.0
    """x+ of the deployed model."""
    arms: frozenset[Arm] = frozenset()
    """Every run that was looked at."""


def decide(case: Case, sample: int = 0) -> Outcome:
    """Apply the rule to one sample.

    Args:
        case: levels and facts of one behaviour.
        sample: 0 for the evaluation examples themselves, then their resamples.

    Raises:
        MissingArmError: naming a run that has to be made first.
    """
    return Rule(case, sample).decide()


@dataclass
class _Peeled:
    """Those taken away so far."""

    order: list[str] = field(default_factory=list)
    arm: Arm = RECORDED
    path: list[str] = field(default_factory=list)
    """Those who stand accused by their path."""
    skipped: set[str] = field(default_factory=set)
    explained: bool = False


class Rule:
    """The rule at one sample; also gives what the roles of the parties are told by."""

    def __init__(self, case: Case, sample: int = 0) -> None:
        self.case, self.sample = case, sample
        self.pipeline, self.concern = case.pipeline, case.concern
        self.tolerance = case.concern.tolerance
        self.used: set[Arm] = set()
        self.recorded = self.course(RECORDED)
        self.single = {stage: Arm.without(stage) for stage in self.pipeline.stages}
        self.zero = self._zero()
        informed = self.zero if case.concern.uninformed is None else case.concern.uninformed
        self.bar = max(self.zero, informed) + self.tolerance
        """What an untrained state must pass to be worse than knowing nothing."""
        self.recorded_rises: dict[str, float] = {}
        self.recorded_rises = self.rises(RECORDED)

    # --- levels -------------------------------------------------------------------------------

    def course(self, arm: Arm) -> Course:
        """A run's levels; the rule stops where it was not made."""
        if arm not in self.case.courses:
            raise MissingArmError(arm)
        self.used.add(arm)
        return self.case.courses[arm]

    def level(self, course: Course, state: str) -> float:
        """Signed towards the concern."""
        return float(course.levels[state][self.sample])

    def over(self, course: Course, state: str) -> float:
        """X of a state; > tolerance: beyond the limit."""
        return self.level(course, state) - self.zero

    def excess(self, course: Course, state: str) -> float:
        """x+ of a state."""
        return max(self.over(course, state), 0.0)

    def end(self, arm: Arm) -> float:
        """X at the end of a run."""
        course = self.course(arm)
        return self.over(course, course.last)

    def effect(self, stage: str) -> float:
        """What leaving out a stage takes away from the deployed model's level."""
        return self.end(RECORDED) - self.end(self.single[stage])

    def able(self, arm: Arm) -> bool:
        """Whether the model of a run can still do about what the deployed one can."""
        course = self.course(arm)
        deployed = self.recorded.skills[self.recorded.last]
        return course.skills[course.last] >= ABLE * min(1.0, deployed)

    @property
    def material(self) -> float:
        """Smallest part of the excess that makes a party answerable."""
        return max(self.tolerance, MATERIAL * self.excess(self.recorded, self.recorded.last))

    def _zero(self) -> float:
        """Limit less tolerance; without a limit the lowest level that a capable state of the run has."""
        if self.concern.limit is not None:
            return self.concern.limit - self.tolerance
        course = self.recorded
        ends = [end_of(stage) for stage in self.pipeline.stages]
        states = [INITIAL_STATE, *ends] if self.pipeline.given else ends
        levels = [
            self.level(course, state)
            for state in states
            if state in course.levels and course.skills[state] >= ABLE
        ]
        for arm in self.single.values():
            other = self.case.courses.get(arm)
            if other is not None and other.skills[other.last] >= ABLE:
                levels.append(self.level(other, other.last))
        return min([*levels, self.level(course, course.last)])

    # --- rises --------------------------------------------------------------------------------

    def rises(self, arm: Arm) -> dict[str, float]:
        """What each party added to the excess in a run, in order of training; a party that is left out
        adds nothing, and neither does a start that is no baseline.
        """
        course = self.course(arm)
        found: dict[str, float] = {}
        now, trained = 0.0, True
        if INITIAL not in arm.replaced:
            trained = INITIAL_STATE in course.levels and self._start_counts(course)
            if trained:
                now = found[INITIAL] = self.excess(course, INITIAL_STATE)
        for stage in self.pipeline.stages:
            if stage in self.pipeline.changed:
                change, start = change_before(stage), start_of(stage)
                if start in course.levels and self._change_counts(stage, course):
                    after = self.excess(course, start)
                    found[change], now = after - now, after
                else:
                    trained = False
            if stage in arm.omitted or end_of(stage) not in course.levels:
                continue
            after = self.excess(course, end_of(stage))
            rise = after - now if trained or self._beyond(stage, course) else 0.0
            if not trained and self.recorded_rises:
                # a new head also restores what earlier stages left behind
                rise = min(rise, self.recorded_rises.get(stage, 0.0))
            found[stage], now, trained = rise, after, True
        return found

    def _beyond(self, stage: str, course: Course) -> bool:
        """Whether the end of a stage that began untrained is more than lack of skill; where reference data
        can tell the two apart, that is left to it.
        """
        testable = self.concern.bounded and stage in self.pipeline.replaceable
        return testable or self.level(course, end_of(stage)) > self.bar

    def _start_counts(self, course: Course) -> bool:
        if course.skills[INITIAL_STATE] >= TRAINED:
            return True
        if not self._outlives(self.level(course, INITIAL_STATE), self.pipeline.stages[0]):
            return False
        return self.pipeline.given or self._firm(INITIAL)

    def _change_counts(self, stage: str, course: Course) -> bool:
        start = start_of(stage)
        if course.skills[start] >= TRAINED:
            return True
        if (
            not self.concern.bounded
        ):  # a fresh head is worse than knowing nothing by any amount, in every draw
            return False
        return self._outlives(self.level(course, start), stage) and self._firm(change_before(stage))

    def _outlives(self, level: float, stage: str) -> bool:
        """Whether an untrained level is worse than knowing nothing, and still is after its first training."""
        end = end_of(stage)
        after = self.level(self.recorded, end) if end in self.recorded.levels else -float("inf")
        return level > self.bar and after > self.bar

    def _firm(self, party: str) -> bool:
        """Whether the level does not hang on the random numbers of the draw."""
        draws = self.case.draws.get(party, ())
        beyond = sum(level > self.bar for level in draws)
        return bool(draws) and beyond >= FIRM * len(draws)

    def persists(self, party: str, arm: Arm) -> bool:
        """Whether the excess that stood after a party's turn was there at every later stage's end."""
        course = self.course(arm)
        states = list(course.levels)
        if state_after(party) not in states:
            return False
        later = states[states.index(state_after(party)) + 1 :]
        new_head = any(
            start_of(stage) in later and course.skills[start_of(stage)] < TRAINED
            for stage in self.pipeline.changed
            if change_before(stage) != party
        )
        ends = [state for state in later if state.endswith(":end")]
        return not new_head and all(self.over(course, state) > self.tolerance for state in ends)

    # --- the steps ----------------------------------------------------------------------------

    def decide(self) -> Outcome:
        """All steps."""
        before = self.excess(self.recorded, self.recorded.last)
        if self.end(RECORDED) <= self.tolerance:
            return Outcome(frozenset(), "within", arms=frozenset(self.used))
        peeled = self._peel()
        after = max(self.end(peeled.arm), 0.0)
        ending: Ending
        path: list[str]
        if peeled.explained:
            ending, path = "removed", []
        elif peeled.order and self._partly(peeled, before, after):
            ending, path = "partly-removed", []
        else:
            ending, path = ("persists", peeled.path) if peeled.path else ("unexplained", [])
        joint, untested = False, frozenset[str]()
        named: set[str] = set(path)
        if ending in ("removed", "partly-removed"):
            named, joint = self._who_counts(peeled, after)
            named = self._who_needs_whom(named, peeled)
            named |= self._part_causes(named, peeled)
        if ending == "partly-removed" and not self.concern.bounded:
            named = {party for party in named if self._began_clean(party)}
            if not named:
                ending, joint = "persists" if peeled.path else "unexplained", False
                named = set(peeled.path)
        if ending == "persists":
            risen = {p for p, rise in self.recorded_rises.items() if rise > self.tolerance * PIECE}
            untested = frozenset((risen | set(peeled.order)) - named)
        return Outcome(
            frozenset(named),
            ending,
            removed=peeled.arm,
            joint=joint or (ending == "removed" and len(named) > 1 and len(peeled.order) == 1),
            untested=untested,
            excess=before,
            arms=frozenset(self.used),
        )

    def _peel(self) -> _Peeled:
        """Step 2."""
        peeled, before = _Peeled(), self.excess(self.recorded, self.recorded.last)
        while True:
            taken = {*peeled.order, *peeled.path, *peeled.skipped}
            rises = {
                party: rise
                for party, rise in self.rises(peeled.arm).items()
                if party not in taken and rise > self.tolerance * PIECE
            }
            if not rises:
                return peeled
            party = max(rises, key=lambda p: rises[p])
            further = self._without(party, peeled.arm)
            if further is None:
                if self._accused_by_path(party, rises[party], peeled.arm):
                    peeled.path.append(party)
                else:
                    peeled.skipped.add(party)
                continue
            peeled.order.append(party)
            peeled.arm = further
            left = self.end(further)
            if left <= self.tolerance and before - max(left, 0.0) > self.tolerance:
                peeled.explained = True
                return peeled

    def _without(self, party: str, arm: Arm) -> Arm | None:
        """The run without a party too, if there is one in which the model stays able."""
        replaced = Arm(arm.omitted, arm.replaced | {party})
        tries: list[Arm] = []
        if is_stage(party):
            omitted = Arm(arm.omitted | {party}, arm.replaced)
            tries = [omitted]
            if party in self.pipeline.replaceable:
                # without a stage that began untrained nothing was learned at all
                tries = [replaced] if self._began_untrained(party) else [omitted, replaced]
        elif party == INITIAL and INITIAL in self.pipeline.replaceable:
            tries = [replaced]
        return next((tried for tried in tries if self.able(tried)), None)

    def _began_untrained(self, stage: str) -> bool:
        start = start_of(stage)
        if stage in self.pipeline.changed and start in self.recorded.levels:
            return self.recorded.skills[start] < TRAINED
        first = stage == self.pipeline.stages[0] and INITIAL_STATE in self.recorded.levels
        return first and self.recorded.skills[INITIAL_STATE] < TRAINED

    def _accused_by_path(self, party: str, rise: float, arm: Arm) -> bool:
        """Whether a party that cannot be taken away is answerable by its path. Without a limit the run's own
        best state is the measure, by which its beginning cannot be judged.
        """
        if rise <= self.material or not self.persists(party, arm) or self._after_a_gap(party):
            return False
        if self.concern.limit is not None or changed_stage(party) is not None:
            return True
        return bool(self.recorded_rises.get(party)) and party not in (
            INITIAL,
            self.pipeline.stages[0],
        )

    def _after_a_gap(self, party: str) -> bool:
        """Whether the state before a party's turn cannot be read: the rise may then be another's."""
        states = [INITIAL_STATE]
        for stage in self.pipeline.stages:
            states += [start_of(stage)] if stage in self.pipeline.changed else []
            states.append(end_of(stage))
        at = states.index(state_after(party))
        return at > 0 and states[at - 1] not in self.recorded.levels

    def _partly(self, peeled: _Peeled, before: float, after: float) -> bool:
        """Step 3: whether enough of the excess is gone, and more than stayed with those on the path."""
        if not peeled.path:
            return before - after > self.material
        return self.concern.bounded and before - after > max(
            self.material, self._stays(peeled.path)
        )

    def _began_clean(self, party: str) -> bool:
        """Whether there was no excess when a party's turn began: where one was, an unbounded metric lets an
        innocent amplifier of what cannot be taken away add any amount to it.
        """
        states = list(self.recorded.levels)
        if state_after(party) not in states:
            return False
        before = states[: states.index(state_after(party))]
        trained = [state for state in before if self.recorded.skills[state] >= TRAINED]
        return not trained or self.over(self.recorded, trained[-1]) <= self.tolerance

    def _stays(self, path: Iterable[str]) -> float:
        """The largest, over those on the path, of the smallest x at any later stage's end."""
        states = list(self.recorded.levels)
        stays = 0.0
        for party in path:
            later = states[states.index(state_after(party)) :]
            ends = [self.over(self.recorded, s) for s in later if s.endswith(":end")]
            stays = max(stays, min(ends, default=0.0))
        return stays

    def _who_counts(self, peeled: _Peeled, after: float) -> tuple[set[str], bool]:
        """Step 4: of several taken away, those whose return alone brings the excess back."""
        if len(peeled.order) == 1:
            return set(peeled.order), False
        alone = {
            party: max(self.end(_with(party, peeled.arm)), 0.0) - after for party in peeled.order
        }
        smallest = -self.tolerance * PIECE
        harmful = [
            party
            for party in peeled.order
            if party not in self.single
            or party in peeled.arm.replaced
            or self.effect(party) > smallest
        ]
        by_itself = {party for party in harmful if alone[party] > self.material}
        if by_itself:
            return by_itself, False
        pieces = {party for party in harmful if alone[party] > self.tolerance * PIECE}
        return pieces or set(harmful) or set(peeled.order), True

    def _who_needs_whom(self, named: set[str], peeled: _Peeled) -> set[str]:
        """Step 5: another stage explains it as well; then it is the one whose rise does not hang on the
        other, or both.
        """
        first = peeled.order[0]
        if len(named) != 1 or first in peeled.arm.replaced or first == INITIAL:
            return named
        (party,) = named
        if party not in self.single:
            return named
        rises = self.recorded_rises
        named = {party}
        for other, arm in self.single.items():
            smallest = max(self.tolerance * PIECE, rises.get(party, 0.0) / 4)
            if other == party or rises.get(other, 0.0) <= smallest:
                continue
            if self.end(arm) > self.tolerance or not self.able(arm):
                continue
            ours = self.rises(arm).get(party, 0.0) < rises.get(party, 0.0) / 2
            theirs = self.rises(self.single[party]).get(other, 0.0) < rises[other] / 2
            if ours and not theirs:
                named, party = {other}, other
            elif ours == theirs:
                named.add(other)
        return named

    def _part_causes(self, named: set[str], peeled: _Peeled) -> set[str]:
        """Step 6: stages that are needed for a part, and raise it without the named ones as well; the rise
        of a mere amplifier is gone there.
        """
        causes = set()
        without = self.rises(peeled.arm)
        for stage, arm in self.single.items():
            if stage in named or self.recorded_rises.get(stage, 0.0) <= self.material:
                continue
            if self.effect(stage) <= self.material or not self.able(arm):
                continue
            rise = without.get(stage, 0.0)
            if rise <= self.tolerance and stage in peeled.order:
                rise = self.rises(_with(stage, peeled.arm)).get(stage, 0.0)
            if rise > self.tolerance:
                causes.add(stage)
        return causes


def _with(party: str, arm: Arm) -> Arm:
    """A run in which a party is as it was."""
    return Arm(arm.omitted - {party}, arm.replaced - {party})
