"""Where paired replay cannot know its error, and where it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from estimates import paired_replay, replay
from said import said
from training import StagePlan, build_mlp32, train

from auditspec.effects import refuse_given_up, same
from auditspec.errors import EstimationError
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired import twin
from auditspec.estimator.paired.twin import FORETOLD, steadied, unreliable


@pytest.mark.parametrize(
    ("diagnostics", "named"),
    [
        ({"untrained": 1.0, "two_c": FORETOLD - 0.01, "two_a": 1.0, "three_c": 0.9}, "two"),
        ({"untrained": 1.0, "two_c": 0.9, "three_c": 0.05}, "three"),
        ({"untrained": 1.0, "two_c": FORETOLD, "three_c": 1.0}, ""),
        ({"untrained": 0.0, "two_c": 0.01}, ""),
        ({"untrained": 1.0}, ""),  # every step was sampled
        ({}, ""),  # another method
    ],
)
def test_an_arm_from_untrained_weights_must_be_foretold(
    diagnostics: dict[str, float], named: str
) -> None:
    named_so = {name.replace("_", ": "): value for name, value in diagnostics.items()}
    reason = unreliable(Arm.without("one"), named_so)
    assert (reason is not None) == bool(named)
    assert reason is None or reason.values["stage"] == named


@pytest.mark.parametrize(
    ("missed", "size", "lost"),
    [
        (0.9, 1.5, True),
        (4.0, 1.1, True),
        (0.9, 0.5, False),
        (10.0, 0.01, False),
        (0.2, 12.0, False),
    ],
)
def test_an_arm_whose_gradients_outgrow_the_record_unforetold_is_lost(
    missed: float, size: float, lost: bool
) -> None:
    found = {"two: c": 0.9, "two: missed": 0.1, "two: size": 1.0, "three: c": 0.9}
    found |= {"three: missed": missed, "three: size": size}
    reason = unreliable(Arm.without("one"), found)
    assert (reason is not None) == lost
    if reason is not None:
        assert reason.code == "gone-astray"
        assert reason.values["stage"] == "three"
        assert "outgrew the recorded ones" in said(reason)


def test_an_infinite_error_is_no_typical_one() -> None:
    errors, sizes = np.array([0.1, np.inf, 0.0]), np.array([1.0, 2.0, 3.0])
    assert steadied(errors, sizes).tolist() == pytest.approx([0.1, np.inf, 0.15])
    assert steadied(np.array([np.inf]), np.array([1.0])).tolist() == [np.inf]


PLAN = (
    StagePlan("one", steps=60, options={"lr": 0.5, "momentum": 0.9}),
    StagePlan("two", steps=40, options={"lr": 0.02, "momentum": 0.9}, shift=1),
    StagePlan("three", steps=40, options={"lr": 0.02, "momentum": 0.9}, shift=2),
)


def test_what_leaving_out_the_first_stage_of_a_random_start_says(tmp_path: Path) -> None:
    """Its gradients are another phase's; those without the middle stage are nearly the recorded ones."""
    recorded = train(tmp_path, PLAN, build_mlp32, every=1)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    one, two = arms = Arm.each(["one", "two"])
    found = paired_replay(rerun, final, arms, gradients=50)
    first, middle = found[one].diagnostics, found[two].diagnostics
    assert (first["untrained"], middle["untrained"]) == (1.0, 0.0)
    assert set(first) == {
        "untrained",
        *(f"{s}: {what}" for s in ("two", "three") for what in ("c", "a", "missed", "size")),
    }
    assert middle["three: c"] > 0.9
    assert middle["three: missed"] < 0.1
    assert first["two: missed"] > middle["three: missed"]
    assert found[one].unreliable == unreliable(one, first)
    assert found[two].unreliable is None
    assert replay(rerun, final, one).unreliable is None
    whole = paired_replay(rerun, final, arms, gradients=10_000)
    assert whole[one].diagnostics == {"untrained": 1.0}  # nothing had to be foretold


def test_an_arm_that_is_lost_is_taken_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on as they would; what there is of it cannot be read, and says why."""
    recorded = train(tmp_path, PLAN, build_mlp32, every=1)
    final = recorded.trajectory.stages[-1].last
    one, two = arms = Arm.each(["one", "two"])
    monkeypatch.setattr(twin, "ASTRAY", np.inf)
    kept = paired_replay(recorded.rerun(), final, arms, gradients=80)
    assert not any(c.given_up for c in kept.values())
    sizes = {arm: kept[arm].diagnostics["three: size"] for arm in arms}
    assert sizes[one] > sizes[two]
    monkeypatch.setattr(twin, "ASTRAY", -1.0)  # then |h|^2 decides, of which only one has so much
    monkeypatch.setattr(twin, "OUTGROWN", (sizes[one] + sizes[two]) / 2)
    rerun = recorded.rerun()
    found = paired_replay(rerun, final, arms, gradients=80)
    assert (found[one].given_up, found[two].given_up) == (True, False)
    assert found[one].gradients < kept[one].gradients
    assert found[one].unreliable is not None
    assert found[one].unreliable.code == "gone-astray"
    assert not found[one].path
    for name, tensor in kept[two].state.parameters.items():
        assert torch.equal(found[two].state.parameters[name], tensor)
    with pytest.raises(EstimationError, match="and was given up"):
        refuse_given_up(found[one])
    refuse_given_up(found[two])
    assert not same(kept[one], found[one])
