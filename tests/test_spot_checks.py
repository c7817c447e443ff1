"""An estimate beside its replay, and the error that the other stages' estimates then state."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import minimal_spec
from said import said

from auditspec import spot_checks as confirm_module
from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.mean import Mean
from auditspec.checks.spot_check import SpotCheck
from auditspec.checks.subject import Estimated, Subject
from auditspec.effects import StageEffects
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.plan import Choice
from auditspec.record.state import State
from auditspec.results import CheckResult
from auditspec.spec.models import Spec
from auditspec.spot_checks import compare, confirm, own_error


def reading(effects: list[float], own: float | None, *, exact: bool = False) -> StageEffects:
    """One stage's effects per example on behaviour `b`."""
    made = Counterfactual(
        Arm.without("one"), "replay" if exact else "paired-replay", exact, State({}, {}), {}, 0, 0
    )
    held = None if own is None else {"b": own}
    found = {"b": np.array(effects)}
    deployed, statistic = {"b": np.zeros(len(effects))}, SliceStatistic(Mean(name="mean"), {})
    return StageEffects(made, found, found, {}, held, {"b": 0.1}, deployed, {"b": statistic})


@pytest.mark.parametrize(("own", "passed"), [(0.5, True), (0.1, False), (None, False)])
def test_an_estimate_agrees_within_the_error_that_it_states(
    own: float | None, passed: bool
) -> None:
    estimate, exact = [1.0, 1.2, 0.8, 1.0], [1.5, 1.7, 1.3, 1.5]
    found = compare(reading(estimate, own), reading(exact, None, exact=True), "b", 0.05)
    spread = np.std(estimate, ddof=1) / 2
    assert found.half_width == pytest.approx(2 * spread + (own or 0.0))
    assert found.passed is passed


def test_a_stated_error_grows_as_the_spot_check_saw_it_exceeded() -> None:
    exact = reading([1.5] * 4, None, exact=True)
    seen = compare(reading([1.0] * 4, 0.2), exact, "b", 0.1)  # off by 0.5
    other = reading([3.0] * 4, 0.4)
    assert own_error(other, "b", []) == 0.4
    assert own_error(other, "b", [seen]) == pytest.approx(0.4 * 0.5 / 0.2)
    assert own_error(exact, "b", [seen]) == 0
    held = compare(reading([1.0] * 4, 0.6), exact, "b", 0.1)
    assert own_error(other, "b", [held]) == 0.4
    silent = compare(reading([1.0] * 4, 0.0), exact, "b", 0.1)
    assert own_error(other, "b", [silent]) == pytest.approx(0.4 + 0.5)


def test_without_a_stated_error_the_relative_one_counts() -> None:
    seen = compare(reading([1.0] * 4, None), reading([1.5] * 4, None, exact=True), "b", 0.1)
    assert own_error(reading([3.0] * 4, None), "b", [seen]) == pytest.approx(3 * 0.5 / 1.5)
    assert own_error(reading([0.1] * 4, None), "b", [seen]) == pytest.approx(0.1)  # the rung below
    assert own_error(reading([3.0] * 4, None), "b", []) == np.inf
    gone = compare(reading([1.0] * 4, None), reading([0.0] * 4, None, exact=True), "b", 0.1)
    assert own_error(reading([3.0] * 4, None), "b", [gone]) == np.inf


@pytest.mark.parametrize("stages", [1, 2])
def test_a_stage_whose_estimate_is_unreliable_is_replayed_first(
    monkeypatch: pytest.MonkeyPatch, stages: int
) -> None:
    """It is held against nothing: that its estimate was wrong was said, and tells nothing of others."""
    lead = reading([2.0] * 4, 0.1)
    weak = reading([0.5] * 4, np.inf)
    readings = {
        "lead": replace(lead, counterfactual=replace(lead.counterfactual, arm=Arm.without("lead"))),
        "weak": replace(
            weak,
            counterfactual=replace(
                weak.counterfactual, arm=Arm.without("weak"), unreliable="it is lost"
            ),
        ),
    }
    exact = {
        stage: replace(
            reading([2.0 if stage == "lead" else -1.0] * 4, None, exact=True),
            counterfactual=replace(r.counterfactual, exact=True, method="replay", gradients=7.0),
        )
        for stage, r in readings.items()
    }
    monkeypatch.setattr(
        confirm_module,
        "counterfactuals",
        lambda estimator, context, arms: {a: exact[a.stage].counterfactual for a in arms},
    )
    monkeypatch.setattr(confirm_module, "read", lambda reader, final, base, c: exact[c.stage])
    monkeypatch.setattr(confirm_module, "replay_cost", lambda stages: dict.fromkeys(readings, 7))
    data = minimal_spec()
    data["behaviors"][0]["id"] = "b"
    data["checks"] = {"spot-check": {"stages": stages}}
    reader: Any = SimpleNamespace(
        rerun=SimpleNamespace(trajectory=SimpleNamespace(grade="dense", stages=()))
    )
    context: Any = SimpleNamespace(run=SimpleNamespace(final=None))
    choices = tuple(Choice(s, PairedReplay(), 1, "") for s in readings)
    spec = Spec.model_validate(data)
    found = confirm(spec, reader, context, {}, choices, readings)
    assert found.readings["weak"].counterfactual.exact
    assert found.readings["lead"].counterfactual.exact == (stages == 2)
    assert found.gradients == 7.0 * stages
    empty: dict[str, Any] = {f.name: None for f in fields(Estimated)}
    estimated = Estimated(**empty | {"reader": reader, "confirmed": found})
    check = SpotCheck.of(Subject(spec, estimated))
    if stages == 1:
        assert isinstance(check, CheckResult)
        assert (check.outcome, check.gradients) == ("not-run", 7.0)
        assert "weak" in said(check.reasons)
        assert found.errors["b"].tolist() == [0.1, 0.0]
    else:
        assert isinstance(check, SpotCheck)
        result = check.run()
        assert (result.outcome, result.gradients) == ("pass", 14.0)
        assert "exact replay of lead" in said(result.reasons)
