"""Sampled steps: where they fall, worked out from the definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from training import StagePlan, train

from auditspec.errors import EstimationError, RecordError
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget

PLAN = tuple(
    StagePlan(name, steps=steps, shift=shift)
    for shift, (name, steps) in enumerate((("one", 8), ("two", 40), ("three", 40), ("four", 1)))
)

ONE = Arm.without("one")


def test_more_samples_where_the_rate_is_high_late_and_for_small_displacements(
    tmp_path: Path,
) -> None:
    trajectory = train(tmp_path, PLAN, every=1).trajectory
    found = schedule(trajectory, Arm.each(["one", "two", "three"]), 60)
    early, late = found.sampled[ONE, 1], found.sampled[ONE, 2]
    assert len(late) > len(early)
    gaps = [b - a for a, b in pairwise(late)]
    assert gaps[-1] > gaps[0]  # dense where the stage begins, sparse at the cosine's end
    moved = [found.sampled[arm, 2] for arm in Arm.each(["one", "two"])]
    lengths = [
        sum(float((s.last.parameters[n] - p).square().sum()) for n, p in s.first.parameters.items())
        for s in trajectory.stages[:2]
    ]
    order = sorted((0, 1), key=lambda i: lengths[i])
    assert len(moved[order[0]]) >= len(moved[order[1]])


def test_every_later_stage_begins_with_two_samples(tmp_path: Path) -> None:
    trajectory = train(tmp_path, PLAN, every=1).trajectory
    found = schedule(trajectory, Arm.each(["one", "two", "three", "four"]), 12)
    assert found.sampled[ONE, 1][:2] == (0, 1)
    assert found.sampled[Arm.without("three"), 3] == (0,)  # a stage of one step
    assert found.exact(Arm.without("three"))
    assert found.exact(Arm.without("four"))
    assert not found.exact(ONE)


def test_the_whole_budget_samples_everything_and_needs_no_recorded_gradients(
    tmp_path: Path,
) -> None:
    trajectory = train(tmp_path, PLAN, every=7).trajectory
    whole = 40 + 40 + 1 + 40 + 1 + 1
    found = schedule(trajectory, Arm.each(["one", "two", "three"]), whole)
    assert found.gradients == whole
    assert not found.observed
    assert not found.skipping


@pytest.mark.parametrize("every", [1, 7])
def test_the_budget_is_nearly_spent(tmp_path: Path, every: int) -> None:
    """One step of the scale samples one step more for a few pairs at a time."""
    trajectory = train(tmp_path, PLAN, every=every).trajectory
    ids = ["one", "two", "three"]
    for budget in range(smallest_budget(trajectory, Arm.each(ids)), 123, 10):
        spent = schedule(trajectory, Arm.each(ids), budget).gradients
        assert budget - 3 <= spent <= budget or every == 7


def test_refusals(tmp_path: Path) -> None:
    trajectory = train(tmp_path, PLAN, every=1).trajectory
    with pytest.raises(RecordError, match="no stage 'zero'"):
        schedule(trajectory, Arm.each(["zero"]), 100)
    least = smallest_budget(trajectory, Arm.each(["one"]))
    assert least == 5
    with pytest.raises(EstimationError, match="4 gradients") as refused:
        schedule(trajectory, Arm.each(["one"]), least - 1)
    assert "to 5 or more" in refused.value.remedy
