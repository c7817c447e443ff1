"""Which runs the rule asks for, and how often; the levels are made up, so that the right answer is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from verdict_cases import LIMIT, behavior, parties, path

from auditspec import settle as settling
from auditspec.estimator.interventions import RECORDED, Arm
from auditspec.paths import Walked
from auditspec.results import Path, Tally
from auditspec.settle import HEEDED, Settlement

RESAMPLES = 100
STAGES = ("pre", "one", "two", "polish")
Levels = Mapping[str, float]
"""By state."""
Shift = Callable[[str], np.ndarray]
"""State -> what each resample adds to its level, [R]."""


def ends(*values: float) -> dict[str, float]:
    """Levels at the ends of the last stages."""
    names = STAGES[len(STAGES) - len(values) :]
    return {f"{stage}:end": v for stage, v in zip(names, values, strict=True)}


def without(*stages: str) -> Arm:
    return Arm.without(*stages)


REDUNDANT: dict[Arm, Levels] = {
    RECORDED: {"initial": 0.1} | ends(0.02, 0.7, 0.7, 0.7),
    without("pre"): ends(0.1, 0.1, 0.1),
    without("one"): ends(0.7, 0.7),
    without("two"): ends(0.7),
    without("polish"): {},
    without("one", "two"): ends(0.03),
}
"""Each of two stages suffices: neither is missed alone, and the second one's rise shows without the first."""
ONE: dict[Arm, Levels] = REDUNDANT | {
    RECORDED: {"initial": 0.1} | ends(0.02, 0.7, 0.7, 0.7),
    without("one"): ends(0.03, 0.03),
}
"""The first of them alone."""
CLEAN: dict[Arm, Levels] = {
    RECORDED: {"initial": 0.1} | ends(0.02, 0.05, 0.05, 0.04),
    without("pre"): ends(0.1, 0.1, 0.1),
    without("one"): ends(0.03, 0.03),
    without("two"): ends(0.04),
    without("polish"): {},
}
SINGLE = [RECORDED, *(without(stage) for stage in STAGES)]
LOST = dict.fromkeys(("one:end", "two:end", "polish:end"), 0.1)
"""Nothing can be done without pretraining."""


class World:
    """Runs that can be made, and those that were asked for."""

    def __init__(
        self,
        levels: Mapping[Arm, Levels],
        *,
        estimated: Iterable[Arm] = (),
        exactly: Mapping[Arm, Levels] | None = None,
        refused: Iterable[Arm] = (),
        shifts: Mapping[Arm, Shift] | None = None,
    ) -> None:
        self.levels = levels
        self.exactly = exactly or {}
        """What exact replay gives instead of an estimate."""
        self.estimated, self.refused = {*estimated}, {*refused}
        self.shifts = shifts or {}
        self.asked: list[tuple[tuple[Arm, ...], bool]] = []
        self.walked = {arm: self.walk(arm) for arm in SINGLE}
        self.stages = STAGES

    def walk(self, arm: Arm, *, exactly: bool = False) -> Walked:
        return Walked(arm, {}, exact=exactly or arm not in self.estimated)

    def make(self, arms: Sequence[Arm], exactly: bool) -> dict[Arm, Walked]:
        self.asked.append((tuple(arms), exactly))
        return {a: self.walk(a, exactly=exactly) for a in arms if a not in self.refused}

    def _of(self, walked: Walked) -> Levels:
        real = self.exactly if walked.exact else {}
        return real.get(walked.arm, self.levels[walked.arm])

    def path(self, walked: Walked, name: str) -> Path:
        skills = LOST if "pre" in walked.arm.omitted else {}
        held = self._of(walked)
        able = {state: skills[state] for state in held if state in skills}
        return path(walked.arm.name, held, behavior=name, exact=walked.exact, skills=able)

    def resampled(self, walked: Walked, name: str) -> dict[str, Any]:
        shift, concern = (
            self.shifts.get(walked.arm, lambda _: np.zeros(RESAMPLES)),
            behavior().concern,
        )
        return {
            state: concern.signed(np.concatenate([[level], level + shift(state)]))
            for state, level in self._of(walked).items()
        }


def settled(world: World) -> tuple[Tally, ...]:
    reader = SimpleNamespace(stages=world.stages, path=world.path)
    resampler = SimpleNamespace(resamples=RESAMPLES, levels=world.resampled)
    settlement = Settlement(
        [behavior()],
        parties(STAGES),
        [],
        reader,  # type: ignore[arg-type]
        resampler,  # type: ignore[arg-type]
        world.make,
        0.95,
        world.walked,
    )
    return settlement.settle()["b"]


def names(tallies: Iterable[Tally]) -> list[tuple[tuple[str, ...], str, int]]:
    return [(t.parties, t.ending, t.count) for t in tallies]


# --- what is asked for ----------------------------------------------------------------------------


def test_where_nobody_is_named_no_run_is_asked_for() -> None:
    world = World(CLEAN, estimated=SINGLE[1:])
    assert names(settled(world)) == [((), "within", RESAMPLES)]
    assert world.asked == []


def test_the_runs_without_one_stage_suffice_where_one_explains_it() -> None:
    world = World(ONE)
    assert names(settled(world)) == [(("one",), "removed", RESAMPLES)]
    assert world.asked == []


def test_a_second_sufficient_stage_shows_in_the_run_without_the_first() -> None:
    world = World(REDUNDANT)
    assert names(settled(world)) == [(("one", "two"), "removed", RESAMPLES)]
    assert world.asked == [((without("one", "two"),), False)]
    assert without("one", "two") in world.walked


def test_a_run_that_cannot_be_made_is_asked_for_once_and_leaves_no_tallies() -> None:
    world = World(REDUNDANT, refused=[without("one", "two")])
    assert settled(world) == ()
    assert world.asked == [((without("one", "two"),), False)]


def test_no_more_runs_are_made_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "MOST_ARMS", 0)
    world = World(REDUNDANT)
    assert settled(world) == ()
    assert world.asked == []


PIECES: dict[Arm, Levels] = REDUNDANT | {
    without("one", "two"): ends(0.7),
    without("one", "two", "polish"): {},
    without("two", "polish"): {},
    without("one", "polish"): {"two:end": 0.7},
}
"""Any of three stages suffices."""


@pytest.mark.parametrize("most", [0, 1, 2, 4])
def test_the_cap_counts_runs_and_not_rounds(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Peeling three stages takes two further runs, and each returned alone one more."""
    monkeypatch.setattr(settling, "MOST_ARMS", 1)
    world = World(PIECES)
    world.stages = STAGES[:most]  # the cap is by their number
    tallies = settled(world)
    made = [arm for arms, _ in world.asked for arm in arms]
    assert len(made) == len(set(made)) == min(most, 4)
    assert set(world.walked) == {*SINGLE, *made}
    named = [(("one", "polish", "two"), "removed", RESAMPLES)] if most == 4 else []
    assert names(tallies) == named


def beyond(count: int) -> Shift:
    """Some resamples are beyond the limit at every state, the others are not."""
    lift = np.where(np.arange(RESAMPLES) < count, 0.65, 0.0)
    return lambda state: lift if state != "initial" and not state.startswith("pre") else 0 * lift


@pytest.mark.parametrize(("count", "heeded"), [(1, False), (4, False), (5, True), (40, True)])
def test_a_run_that_few_resamples_ask_for_is_not_made(count: int, heeded: bool) -> None:
    """The examples name nobody; some resamples see two redundant causes."""
    levels = CLEAN | {without("one", "two"): ends(0.02)}
    shifts = {
        RECORDED: beyond(count),
        without("one"): beyond(count),
        without("two"): beyond(count),
    }
    world = World(levels, shifts=shifts)
    tallies = names(settled(world))
    assert ((), "within", RESAMPLES - count) in tallies
    assert heeded is (count >= HEEDED * RESAMPLES)
    assert world.asked == ([((without("one", "two"),), False)] if heeded else [])
    more = [(("one", "two"), "removed", count)] if heeded else []
    assert [t for t in tallies if t[0]] == more
    assert sum(t[2] for t in tallies) == (RESAMPLES if heeded else RESAMPLES - count)


# --- what is confirmed ----------------------------------------------------------------------------


def test_an_estimated_run_is_made_exactly_before_it_names_somebody() -> None:
    world = World(ONE, estimated=SINGLE[1:])
    assert names(settled(world)) == [(("one",), "removed", RESAMPLES)]
    assert world.asked == [((without("one"),), True)]
    assert world.walked[without("one")].exact
    assert not world.walked[without("two")].exact


def test_runs_of_several_stages_are_estimated_first_and_then_confirmed() -> None:
    both = without("one", "two")
    world = World(REDUNDANT, estimated=[*SINGLE[1:], both])
    assert names(settled(world)) == [(("one", "two"), "removed", RESAMPLES)]
    assert world.asked[0] == ((both,), False)
    confirmed = {arm for arms, exactly in world.asked if exactly for arm in arms}
    assert both in confirmed
    assert confirmed <= {both, without("one"), without("two")}
    assert world.walked[both].exact


def test_an_exact_run_may_change_the_answer_and_that_is_confirmed_in_turn() -> None:
    """The estimate says that the excess goes with `one`; really it stays, and `two` suffices as well."""
    world = World(
        ONE | {without("one", "two"): ends(0.03)},
        estimated=SINGLE[1:],
        exactly={without("one"): ends(0.7, 0.7), without("two"): ends(0.7)},
    )
    assert names(settled(world)) == [(("one", "two"), "removed", RESAMPLES)]
    assert ((without("one"),), True) in world.asked
    assert ((without("one", "two"),), False) in world.asked


def test_a_confirmation_that_cannot_be_paid_is_asked_for_once() -> None:
    world = World(ONE, estimated=SINGLE[1:], refused=[without("one")])
    assert names(settled(world)) == [(("one",), "removed", RESAMPLES)]
    assert world.asked == [((without("one"),), True)]
    assert not world.walked[without("one")].exact  # the verdict will say so


def test_nothing_is_confirmed_where_the_resamples_leave_it_open() -> None:
    """In a third of them the level is within the limit: nobody will be named, whatever is replayed."""
    lower = np.where(np.arange(RESAMPLES) < 33, LIMIT - 0.75, 0.0)
    world = World(ONE, estimated=SINGLE[1:], shifts={RECORDED: lambda _: lower})
    tallies = names(settled(world))
    assert tallies == [(("one",), "removed", 67), ((), "within", 33)]
    assert world.asked == []
