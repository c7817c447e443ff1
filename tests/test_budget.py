"""One budget for the whole audit: the record first, then estimates, twins, and what is put aside."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from factories import spec_of_record
from said import said
from training import Recorded, StagePlan, train

from auditspec import budget as budgeting
from auditspec.budget import Allotment, Purse, allot
from auditspec.errors import UsageError
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.sampled_steps import smallest_budget
from auditspec.spec.models import Spec

STEPS = {"one": 6, "two": 12, "three": 30}
PASS = 6 + 12 + 30
"""Gradients of the whole record; a step of `two` has two microbatches of its 6."""
WHOLE, LONGEST = (12 + 30) + 30, 12 + 30
"""Replays of every stage, and the longest one: without `one`."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    plan = (
        StagePlan("one", 6),
        StagePlan("two", 6, shift=1, microbatches=2),
        StagePlan("three", 30, shift=2),
    )
    return train(tmp_path_factory.mktemp("run"), plan, every=1)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A record whose gradients are not in it, so that pairs of runs cost more than replay."""
    return train(tmp_path_factory.mktemp("run"), [StagePlan(s) for s in STEPS], every=3)


def spec(
    gradients: int | None = None,
    method: str = "auto",
    seconds: float | None = None,
    windows: int | str | None = None,
    dtype: str = "float64",
    **checks: Any,
) -> Spec:
    data = spec_of_record(*STEPS)
    budget: dict[str, Any] = {"gradients": gradients, "seconds": seconds}
    data["estimator"] = {"method": method, "budget": budget, "dtype": dtype}
    data["checks"] = checks
    if windows is not None:
        data["checks"] |= {"record-fidelity": {"windows": windows}}
    return Spec.model_validate(data)


def least(recorded: Recorded) -> int:
    return smallest_budget(recorded.trajectory, Arm.each(("one", "two")))


def test_without_a_budget_everything_may_be_spent(recorded: Recorded) -> None:
    found = allot(spec(), recorded.trajectory)
    assert found == Allotment(math.inf, PASS, None, math.inf)
    assert found.purse().pays(1e12)


def test_a_budget_that_pays_for_exact_replay_is_all_spent_on_it(recorded: Recorded) -> None:
    for more in (0, 7):
        found = allot(spec(PASS + WHOLE + more), recorded.trajectory)
        assert found == Allotment(PASS + WHOLE + more, PASS, WHOLE + more, more)


@pytest.mark.parametrize("missing", [1, 10])
def test_what_does_not_is_shared_between_estimates_their_twins_and_a_replay(
    recorded: Recorded, missing: int
) -> None:
    """One replay of the longest kind is put aside where the rest still makes an estimate and its twin."""
    left = WHOLE - missing
    found = allot(spec(PASS + left), recorded.trajectory)
    reserve = LONGEST if (left - LONGEST) / 2 >= least(recorded) else 0
    assert found.reserve == reserve
    assert found.estimates == (left - reserve) // 2
    assert found.fidelity + 2 * found.estimates + found.reserve <= found.total


def test_a_replay_is_put_aside_only_where_the_rest_suffices(recorded: Recorded) -> None:
    """Just enough for an estimate and its twin; or for a replay of the longest kind beside them."""
    smallest = least(recorded)
    assert 2 * smallest + LONGEST < WHOLE  # both cases can be told apart here
    for left, reserve in (
        (2 * smallest, 0),
        (2 * smallest + LONGEST - 1, 0),
        (2 * smallest + LONGEST, LONGEST),
    ):
        found = allot(spec(PASS + left), recorded.trajectory)
        assert found.reserve == reserve
        assert found.estimates == (left - reserve) // 2


@pytest.mark.parametrize("method", ["auto", "paired-replay"])
def test_too_little_says_what_would_do(recorded: Recorded, method: str) -> None:
    """Less than the record takes is refused; what re-runs it and estimates nothing is told."""
    enough = PASS + 2 * least(recorded)
    found = allot(spec(enough, method), recorded.trajectory)
    assert (found.estimates, found.needed) == (least(recorded), 0)
    for budget in (enough - 1, PASS + 1):
        short = allot(spec(budget, method), recorded.trajectory)
        assert short.needed == enough
        assert f"the budget is {budget} gradients" in said(short.short)
        assert f"an estimate needs {enough}" in said(short.short)
    for budget in (PASS, PASS - 1, 1):
        with pytest.raises(UsageError, match=f"the budget is {budget} gradients") as error:
            allot(spec(budget, method, windows="all"), recorded.trajectory)
        assert error.value.exit_code == 2
        assert "the smallest estimate" in error.value.message
        assert f"to {enough} gradients or more" in error.value.remedy


@pytest.mark.parametrize("method", ["auto", "paired-replay"])
def test_exact_replay_is_asked_for_where_it_costs_less(sparse: Recorded, method: str) -> None:
    enough = 18 + 12 + 6
    assert 2 * least(sparse) > 12 + 6
    assert allot(spec(enough, method), sparse.trajectory).estimates == 12 + 6
    assert allot(spec(enough - 1, method), sparse.trajectory).needed == enough
    with pytest.raises(UsageError, match="exact replay") as error:
        allot(spec(18, method, windows="all"), sparse.trajectory)
    assert f"to {enough} gradients or more" in error.value.remedy


def test_exact_replay_takes_all_or_nothing(recorded: Recorded) -> None:
    assert allot(spec(PASS + WHOLE, "replay"), recorded.trajectory).reserve == 0
    with pytest.raises(UsageError, match="exact replay") as error:
        allot(spec(PASS + WHOLE - 1, "replay"), recorded.trajectory)
    assert f"to {PASS + WHOLE} gradients or more" in error.value.remedy


@pytest.mark.parametrize("method", ["displacement", "first-order", "krylov"])
def test_a_linear_method_may_spend_what_the_record_leaves(recorded: Recorded, method: str) -> None:
    found = allot(spec(PASS + 5, method), recorded.trajectory)
    assert (found.estimates, found.reserve) == (5, 5 - WHOLE)
    with pytest.raises(UsageError, match="re-running the record takes 48"):
        allot(spec(PASS - 1, method, windows="all"), recorded.trajectory)


def test_where_nothing_can_be_replayed_all_is_for_estimates_and_their_twins(tmp_path: Path) -> None:
    bare = train(tmp_path, [StagePlan("one", 4), StagePlan("two", 4)], every="boundaries")
    assert allot(spec(31), bare.trajectory) == Allotment(31, 0, 20, 0)
    assert allot(spec(), bare.trajectory).estimates is None
    assert allot(spec(31, "krylov"), bare.trajectory).estimates == 31


def test_some_windows_cost_their_share_of_the_record(recorded: Recorded) -> None:
    every = 6 + 6 + 30
    for windows in (1, 5, every, every + 9):
        share = min(1, windows / every)
        found = allot(spec(windows=windows), recorded.trajectory)
        assert found.fidelity == math.ceil(PASS * share)


@pytest.mark.parametrize("budget", [4, 11, PASS - 1, PASS])
def test_a_budget_that_does_not_pay_for_the_record_re_runs_some_of_it(
    recorded: Recorded, budget: int
) -> None:
    """Half of it goes to windows, of one or two gradients here; the dearest are reckoned with."""
    found = allot(spec(budget), recorded.trajectory)
    costs = sorted(
        (len(s.batches) for p in recorded.trajectory.stages for s in p.steps), reverse=True
    )
    assert isinstance(found.windows, int)
    assert 0 < found.fidelity == sum(costs[: found.windows]) <= budget / 2
    assert sum(costs[: found.windows + 1]) > budget / 2
    assert allot(spec(PASS + 1), recorded.trajectory).windows == "all"
    with pytest.raises(UsageError, match="re-running the record takes 48"):
        allot(spec(3), recorded.trajectory)  # pays for no window


@pytest.mark.parametrize(
    ("precision", "steps"), [({}, 20), ({"steps": 3}, 3), ({"steps": 0}, 0), ({"examples": 0}, 0)]
)
def test_steps_that_are_made_in_two_precisions_come_with_the_record(
    recorded: Recorded, precision: dict[str, int], steps: int
) -> None:
    wanted = spec(dtype="float32", precision=precision)
    assert allot(wanted, recorded.trajectory).fidelity == PASS + 2 * steps


def test_seconds_are_gradients_at_the_pace_of_the_record(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of `one` takes 1 s, of `two` 2 s, of `three` 3 s: 120 s for 48 of them."""

    class Known:
        @staticmethod
        def recorded(_: object) -> Any:
            return type("Pace", (), {"seconds": {"one": 1.0, "two": 2.0, "three": 3.0}})()

    monkeypatch.setattr(budgeting, "Pace", Known)
    mean = (6 * 1 + 12 * 2 + 30 * 3) / PASS
    found = allot(spec(seconds=200.0 * mean), recorded.trajectory)
    assert found.total == pytest.approx(200)
    assert found.seconds == pytest.approx(200 * mean)
    # the smaller of two limits counts
    assert allot(spec(150, seconds=200.0 * mean), recorded.trajectory).total == 150
    assert allot(spec(300, seconds=200.0 * mean), recorded.trajectory).total == pytest.approx(200)


# --- the purse ------------------------------------------------------------------------------------


def test_a_purse_pays_what_is_left() -> None:
    purse = Allotment(total=100, fidelity=40, estimates=20, reserve=20).purse()
    assert purse.pays(60)
    assert not purse.pays(61)
    purse.spend(45)
    assert (purse.left, purse.spent) == (15, 45)
    assert purse.pays(15)
    assert not purse.pays(15.5)


def test_nothing_is_paid_after_the_time_is_over_but_what_is_free() -> None:
    purse = Purse(1000.0, until=time.monotonic() - 1)
    assert not purse.pays(1)
    assert purse.pays(0)
    assert Purse(1000.0, until=time.monotonic() + 1000).pays(1)
    late = Allotment(100, 0, None, 0, seconds=0.0).purse()
    assert late.until is not None
    assert not late.pays(1)
