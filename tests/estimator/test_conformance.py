"""What every estimator keeps to, whichever it is; and that a new one needs nothing but itself.

Parametrised over the one list: an estimator that is added to it is held to all of this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from estimates import Watching, context_of, store_in
from said import said
from small_audit import edit_spec
from torch import Tensor, nn
from training import (
    ROWS,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    parameters,
    relative,
    retrain,
    train,
)

from auditspec import estimator as package
from auditspec.errors import AuditspecError, BudgetError, EstimationError, UnsupportedError
from auditspec.estimator.cache import Cache, FileJournal
from auditspec.estimator.compute import chosen_counterfactuals, counterfactuals
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, difference
from auditspec.estimator.forecast import Pace, replay_cost, state_bytes
from auditspec.estimator.interface import Context, Estimator, Forecast, Terms
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.linear.tangent import Displacement
from auditspec.estimator.plan import choose, estimator_named, prospects
from auditspec.flow import run_audit, write_packet
from auditspec.messages import message
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory
from auditspec.schedules import Constant
from auditspec.sign.packet import PacketWriter
from auditspec.spec.source import load
from auditspec.workplace import Workplace

ESTIMATORS: tuple[type[Estimator], ...] = package.ESTIMATORS
PLAN = tuple(
    StagePlan(name, 10, options={"lr": 0.05, "momentum": 0.9}, shift=i, microbatches=1 + i % 2)
    for i, name in enumerate(("one", "two", "three", "four"))
)
ARMS = Arm.each(["one", "two", "three"])
LAST = Arm.without("four")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN, build_dropped, every=1)


@pytest.fixture(params=ESTIMATORS, ids=lambda kind: kind.name)
def estimator(request: pytest.FixtureRequest) -> Estimator:
    made: Estimator = request.param()
    return made


def half(estimator: Estimator, record: Trajectory) -> int | None:
    """A budget that bites, for an estimator that goes by one."""
    return int(sum(replay_cost(record.stages).values()) // 2) if estimator.budgeted else None


def same(left: Counterfactual, right: Counterfactual) -> bool:
    facts = ("arm", "method", "exact", "gradients", "notes", "diagnostics", "linear_reading")
    pairs = [(left.state.parameters, right.state.parameters), (left.delta, right.delta)]
    pairs += [(end.parameters, right.path[stage].parameters) for stage, end in left.path.items()]
    return (
        all(getattr(left, name) == getattr(right, name) for name in facts)
        and left.path.keys() == right.path.keys()
        and all(
            torch.equal(ours[n], tensor) for ours, theirs in pairs for n, tensor in theirs.items()
        )
    )


# --- what it says of itself -----------------------------------------------------------------------


def test_it_has_a_name_and_words_of_its_own(estimator: Estimator) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", estimator.name)
    assert estimator_named(estimator.name) == estimator
    assert estimator.title[0].isupper()
    assert said(estimator.words).endswith(".")
    assert len({kind.title for kind in ESTIMATORS}) == len(ESTIMATORS)


def test_its_fields_are_its_options_and_nothing_changes_them(estimator: Estimator) -> None:
    assert hash(estimator) == hash(type(estimator)())
    for field in fields(estimator):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(estimator, field.name, None)


def test_its_needs_are_named_and_met(estimator: Estimator, recorded: Recorded) -> None:
    record = recorded.trajectory
    terms = Terms(budget=half(estimator, record))
    needs = estimator.requirements(record, ARMS, terms)
    assert len({need.what for need in needs}) == len(needs) > 0
    estimator.require(record, ARMS, terms)
    row = next(
        r for r in prospects(record, terms, Pace.recorded(record)) if r.method == estimator.name
    )
    assert row.possible
    assert [need.what for need in row.needs] == [need.what for need in needs]


# --- what it gives --------------------------------------------------------------------------------


def test_the_last_stage_is_free_of_cost(estimator: Estimator, recorded: Recorded) -> None:
    rerun, record = recorded.rerun(), recorded.trajectory
    terms = Terms(budget=half(estimator, record))
    *others, last = choose(record, estimator.name, terms)
    assert [choice.method for choice in others] == [estimator.name] * 3
    assert (last.stage, last.gradients) == ("four", 0)
    context = context_of(rerun, budget=terms.budget)
    found = chosen_counterfactuals(context, {last.stage: last.estimator}).estimates[
        Arm.without("four")
    ]
    assert rerun.gradients == found.gradients == 0
    assert relative(found.state.parameters, record.stages[-1].first.parameters) == 0


def test_it_costs_what_it_said_or_less(estimator: Estimator, recorded: Recorded) -> None:
    record = recorded.trajectory
    context = context_of(recorded.rerun(), budget=half(estimator, record))
    forecast = estimator.forecast(record, ARMS, context)
    assert list(forecast.shares) == ARMS
    assert sum(forecast.shares.values()) == pytest.approx(forecast.gradients, abs=0.01)
    assert min(forecast.memory, forecast.disk) > 0
    found = estimator.estimate(context, ARMS)
    spent = sum(c.gradients for c in found.values())
    assert spent <= forecast.gradients + 0.01
    for arm, share in forecast.shares.items():
        assert found[arm].seconds >= 0
        if estimator.independent:
            assert found[arm].gradients == pytest.approx(share, abs=0.01)
    if context.budget is not None:
        assert spent <= context.budget
    assert estimator.least(record, ARMS, context) <= forecast.gradients + 1


def test_what_it_gives_is_a_state_and_its_distance(
    estimator: Estimator, recorded: Recorded
) -> None:
    final = recorded.trajectory.stages[-1].last
    found = estimator.estimate(context_of(recorded.rerun()), ARMS[::-1])
    assert list(found) == ARMS[::-1]
    for arm, c in found.items():
        assert (c.arm, c.method, c.cached) == (arm, estimator.name, False)
        assert not c.state.optimizer_state
        assert c.state.parameters.keys() == c.delta.keys() == final.parameters.keys()
        gap = difference(c.state.parameters, final.parameters)
        assert all(torch.allclose(gap[n], d, rtol=0, atol=1e-12) for n, d in c.delta.items())
        later = [stage.id for stage in recorded.plan[recorded.trajectory.index(arm.stage) + 1 :]]
        assert list(c.path) in ([], later)
        if c.path:
            assert c.path[later[-1]] is c.state


def test_exact_means_exact(estimator: Estimator, recorded: Recorded) -> None:
    """Against plain training without the stage; the budget pays for every step."""
    found = estimator.estimate(context_of(recorded.rerun()), ARMS)
    assert all(c.exact for c in found.values()) >= (estimator.exact or estimator.budgeted)
    for arm, c in found.items():
        if c.exact:
            assert relative(c.state.parameters, parameters(retrain(recorded, arm.stage))) < 1e-12


class Linear(nn.Module):
    """Squared error is quadratic in its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.map(x) + 2 * self.last(x)


def build_linear() -> nn.Module:
    return Linear().double()


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    return ((model(x, token) - nn.functional.one_hot(y, 3)) ** 2).sum(1).mean()


class FullBatch(StagePlan):
    def ids(self, step: int) -> list[int]:
        return list(range(ROWS))


@pytest.mark.parametrize(
    "linearising",
    [Displacement(), Displacement("finite-difference"), Krylov(30, 10**6, "hessian", 3)],
    ids=["displacement", "by finite differences", "krylov"],
)
def test_what_linearises_later_stages_is_exact_on_quadratics(
    tmp_path: Path, linearising: Estimator
) -> None:
    plan = tuple(FullBatch(name, 9, options={"lr": 0.05}) for name in ("one", "two", "three"))
    recorded = train(tmp_path, plan, build_linear, every=4, objective=squared_error)
    arms = Arm.each(["one", "two"])
    for arm, c in linearising.estimate(context_of(recorded.rerun()), arms).items():
        truth = difference(
            parameters(retrain(recorded, arm.stage)), recorded.trajectory.stages[-1].last.parameters
        )
        assert relative(c.delta, truth) < 1e-7


# --- how it goes on, and is kept ------------------------------------------------------------------


def test_it_goes_on_from_its_journal_bit_for_bit(
    estimator: Estimator, recorded: Recorded, tmp_path: Path
) -> None:
    budget = half(estimator, recorded.trajectory)
    units: list[int] = []
    whole = estimator.estimate(
        context_of(recorded.rerun(), budget=budget, visit=units.append), ARMS
    )
    for stop in range(1, len(units), max(len(units) // 4, 1)):
        left = stop

        def interrupt(_: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt

        context = context_of(
            recorded.rerun(),
            budget=budget,
            visit=interrupt,
            journal=FileJournal(tmp_path / f"{stop}.safetensors", share=0.0),
        )
        with pytest.raises(KeyboardInterrupt):
            estimator.estimate(context, ARMS)
        rerun = recorded.rerun()
        again = replace(context, engine=rerun, progress=Watching(lambda _: None))
        found = estimator.estimate(again, ARMS)
        # batched arms check their first step again, and so may round otherwise than one by one
        assert all(relative(found[arm].delta, c.delta) < 1e-9 for arm, c in whole.items())
        if not estimator.exact:
            assert all(same(found[arm], c) for arm, c in whole.items())


def test_a_kept_estimate_serves_as_long_as_nothing_changes(
    estimator: Estimator, recorded: Recorded, tmp_path: Path
) -> None:
    budget = half(estimator, recorded.trajectory)
    context = context_of(recorded.rerun(), budget=budget, store=store_in(tmp_path))
    found = counterfactuals(estimator, context, ARMS)
    spent = context.engine.gradients
    again = counterfactuals(estimator, context, ARMS)
    assert context.engine.gradients == spent
    for arm, c in found.items():
        assert again[arm].cached
        assert same(c, again[arm])
    assert not list(tmp_path.glob("*.journal.safetensors"))
    (single,) = counterfactuals(estimator, context, ARMS[:1]).values()
    assert single.cached == estimator.independent
    if estimator.budgeted:
        other = replace(context, budget=(budget or 0) + 1)
        assert not any(c.cached for c in counterfactuals(estimator, other, ARMS).values())


def test_its_twin_costs_as_much_and_is_another(estimator: Estimator, recorded: Recorded) -> None:
    twin = estimator.twin()
    if twin is None:
        pytest.skip("its error is known otherwise")
    context = context_of(recorded.rerun(), budget=half(estimator, recorded.trajectory))
    ours, theirs = (kind.estimate(context, ARMS) for kind in (estimator, twin))
    assert not all(same(c, theirs[arm]) for arm, c in ours.items())
    for found in (ours, theirs):
        assert sum(c.gradients for c in found.values()) <= (context.budget or 0)


# --- what it refuses ------------------------------------------------------------------------------


def test_arms_that_it_cannot_make_are_refused_by_name(
    estimator: Estimator, recorded: Recorded
) -> None:
    context = context_of(recorded.rerun(), budget=half(estimator, recorded.trajectory))
    arms = {
        Arm.without("one", "two"): estimator.several,
        Arm(replaced=frozenset({INITIAL})): estimator.replaces,
    }
    for arm, able in arms.items():
        if not able:
            with pytest.raises(UnsupportedError, match=estimator.name) as refused:
                counterfactuals(estimator, context, [arm])
            assert "estimator.method" in refused.value.remedy
        elif arm.omitted:
            assert counterfactuals(estimator, context, [arm])[arm].arm == arm


def test_a_record_without_steps_is_crossed_as_declared_or_refused(
    estimator: Estimator, tmp_path: Path
) -> None:
    plan = tuple(replace(stage, microbatches=1) for stage in PLAN[:3])
    bare = train(tmp_path, plan, build_mlp, every="boundaries")
    arms = Arm.each(["one", "two"])
    refusals: list[Any] = [
        lambda: estimator.require(bare.trajectory, arms, Terms()),
        lambda: estimator.estimate(context_of(bare.rerun()), arms),
    ]
    for refused in refusals:
        with pytest.raises(EstimationError, match="recorded without its steps") as error:
            refused()
        assert error.value.remedy
    declared = {stage.id: Declared(Constant()) for stage in plan}
    context = context_of(bare.rerun(), declared=declared)
    if estimator.needs_steps:
        with pytest.raises(EstimationError):
            estimator.require(bare.trajectory, arms, context)
    else:
        estimator.require(bare.trajectory, arms, context)
        assert set(estimator.estimate(context, arms)) == set(arms)


def test_a_budget_that_is_too_small_is_refused_with_one_that_is_not(
    estimator: Estimator, recorded: Recorded
) -> None:
    record = recorded.trajectory
    least = estimator.least(record, ARMS, Terms())
    with pytest.raises(BudgetError) as refused:
        choose(record, estimator.name, Terms(budget=least - 1))
    assert str(least) in refused.value.remedy.replace(",", "")
    assert choose(record, estimator.name, Terms(budget=least))


def test_every_refusal_of_a_strange_run_is_an_error_of_ours(
    estimator: Estimator, tmp_path: Path
) -> None:
    """An optimizer without an update map, carried over a boundary."""
    plan = (
        StagePlan("one", 4, "RMSprop", {"lr": 0.01}),
        StagePlan("two", 4, "RMSprop", {"lr": 0.01}, shift=1, carry=True),
    )
    strange = train(tmp_path, plan, every=1)
    arms = Arm.each(["one"])
    try:
        estimator.require(strange.trajectory, arms, Terms())
    except AuditspecError as refused:
        assert "RMSprop" in refused.message
        with pytest.raises(AuditspecError):
            estimator.estimate(context_of(strange.rerun()), arms)
    else:
        found = estimator.estimate(context_of(strange.rerun()), arms)[arms[0]]
        assert found.exact
        assert relative(found.state.parameters, parameters(retrain(strange, "one"))) < 1e-12


# --- a new one ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskVector(Estimator):
    """Task-vector negation (Ilharco et al. 2023, arXiv 2212.04089): theta_K - (theta_b - theta_a)."""

    name = "task-vector"
    title = "Task-vector negation"
    words = message("task-vector:does")
    sentences: ClassVar = {
        "task-vector:does": "What the stage moved is taken off the deployed weights."
    }
    needs_steps = False
    independent = True

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        weights, _ = state_bytes(record)
        return Forecast(dict.fromkeys(arms, 0.0), 0.0, 2.0 * weights, 2 * weights * len(arms))

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        final, made = context.run.final, {}
        for arm in arms:
            stage = context.record.stages[context.record.index(arm.stage)]
            delta = difference(stage.first.parameters, stage.last.parameters)
            weights = {n: final.parameters[n] + d for n, d in delta.items()}
            state = State(weights, final.buffers)
            made[arm] = Counterfactual(arm, self.name, False, state, delta, 0.0, 0.0)
        return made


def test_a_new_estimator_is_one_class_in_the_list(
    audit_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole audit by it: chosen by name, priced, kept, spot-checked, and told in its own words."""
    edit_spec(audit_spec, lambda data: data["estimator"].update(method=TaskVector.name))
    with pytest.raises(AuditspecError, match="no estimator is named 'task-vector'"):
        run_audit(load(audit_spec), command="auditspec run")
    monkeypatch.setattr(package, "ESTIMATORS", (*ESTIMATORS, TaskVector))
    loaded = load(audit_spec)
    result = run_audit(
        loaded, command="auditspec run", workplace=Workplace(Cache(tmp_path / "cache"))
    )
    methods = {estimate.stage: estimate.method for estimate in result.estimates}
    assert TaskVector.name in methods.values()
    assert {method.title for method in result.methods} == {TaskVector.title, "Exact replay"}
    checks = {check.id: check for check in result.checks}
    assert checks["spot-check"].outcome in ("pass", "fail")
    assert all(effect.error is not None for effect in result.effects)
    again = run_audit(
        loaded, command="auditspec run", workplace=Workplace(Cache(tmp_path / "cache"))
    )
    assert all(estimate.cached for estimate in again.estimates)
    with PacketWriter(tmp_path / "packet") as packet:
        write_packet(packet, result, loaded)
    report = (tmp_path / "packet" / "report.html").read_text()
    assert TaskVector.title in report
    assert "What the stage moved is taken off the deployed weights." in report
