"""Simulated replay against a plain loop, against retraining where no order matters, and within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of
from torch import Tensor, nn
from training import (
    ROWS,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_normed,
    parameters,
    predict,
    relative,
    retrain,
    train,
)

from auditspec.errors import BudgetError, EstimationError
from auditspec.estimator.counterfactual import Counterfactuals
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.simulated.anchored import anchored
from auditspec.estimator.simulated.simulated import SimulatedReplay
from auditspec.estimator.simulated.simulation import Simulation
from auditspec.record.state import State
from auditspec.schedules import Constant, Course

IDS = ("one", "two", "three")
ARMS = Arm.each(IDS[:-1])
STEPS, BATCH = 20, 8
ADAM = tuple(StagePlan(name, STEPS, "AdamW", {"lr": 0.01}, shift=i) for i, name in enumerate(IDS))


class Falling(Course):
    """The course of `training.one_step`."""

    name: str = "falling"

    def share(self, step: int, steps: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / (steps + 2)))


class FullBatch(StagePlan):
    def ids(self, step: int) -> list[int]:
        return list(range(ROWS))


def declared(batch: int = BATCH) -> dict[str, Declared]:
    return dict.fromkeys(IDS, Declared(Falling(), lr=0.01, batch=batch))


def estimate(
    recorded: Recorded,
    budget: int | None = None,
    estimator: SimulatedReplay | None = None,
    batch: int = BATCH,
) -> Counterfactuals:
    context = context_of(recorded.rerun(), budget=budget, declared=declared(batch))
    return (estimator or SimulatedReplay()).estimate(context, ARMS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), ADAM, build_mlp, every="boundaries")


# --- against plain loops --------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 60])
def test_it_is_the_loop_that_its_docstring_describes(bare: Recorded, budget: int | None) -> None:
    """Plain torch on the same simulated rows: the run from the recorded starts, the arm beside it."""
    rows = BATCH if budget is None else BATCH * 6 // 10
    found = estimate(bare, budget)
    spent = sum(c.gradients for c in found.values())
    assert spent == pytest.approx((2 + 1 + 2) * STEPS * rows / BATCH)
    stages = bare.trajectory.stages
    for number, arm in enumerate(ARMS):
        theta = dict(stages[number].first.parameters)
        for stage in stages[number + 1 :]:
            order = Simulation(rows / BATCH, 0)
            steps = order.steps(stage, declared()[stage.id], bare.datasets)
            ids = [step.batches[0].ids for step in steps]
            assert {len(i) for i in ids} == {rows}
            ours, theirs = (_trained(bare, t, ids) for t in (theta, stage.first.parameters))
            theta = {n: stage.last.parameters[n] + ours[n] - theirs[n] for n in theta}
        assert not found[arm].exact
        assert relative(found[arm].state.parameters, theta) < 1e-12


def _trained(recorded: Recorded, theta: Mapping[str, Tensor], ids: Any) -> dict[str, Tensor]:
    model = build_mlp()
    model.load_state_dict(theta)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step, rows in enumerate(ids):
        optimizer.param_groups[0]["lr"] = (
            0.01 * 0.5 * (1 + math.cos(math.pi * step / (len(ids) + 2)))
        )
        batch = recorded.functions.load_batch(recorded.datasets["data"], rows)
        optimizer.zero_grad()
        nn.functional.cross_entropy(predict(model, batch), batch[2]).backward()
        optimizer.step()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(("build", "optimizer"), [(build_mlp, "AdamW"), (build_normed, "SGD")])
@pytest.mark.parametrize("carry", [False, True])
def test_where_no_order_matters_it_is_retraining(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str, carry: bool
) -> None:
    """Every row in every minibatch: what is declared is what was done, moments and batch statistics included."""
    plan = tuple(
        FullBatch(name, 8, optimizer, {"lr": 0.01}, carry=carry and i == 2, clip_norm=0.5)
        for i, name in enumerate(IDS)
    )
    recorded = train(tmp_path, plan, build, every="boundaries")
    dense = train(tmp_path / "dense", plan, build, every=1)
    for arm, c in estimate(recorded, batch=ROWS).items():
        wanted = retrain(dense, arm.stage)
        assert relative(c.state.parameters, parameters(wanted)) < 1e-9
        buffers = dict(wanted.named_buffers())
        assert all(torch.allclose(b, buffers[n], atol=1e-10) for n, b in c.state.buffers.items())
        assert all(c.diagnostics[f"{stage}: apart"] < 1e-9 for stage in c.path)


def test_a_stage_that_changed_nothing_has_no_effect_in_any_order(tmp_path: Path) -> None:
    """Both worlds see the same rows and random numbers, so that what they share drops out whole."""
    plan = (replace(ADAM[0], options={"lr": 0.0}), *ADAM[1:])
    recorded = train(tmp_path, plan, build_dropped, every="boundaries")
    for order in (0, 1):
        c = estimate(recorded, 60, SimulatedReplay(order))[ARMS[0]]
        assert c.diagnostics["two: apart"] > 0.01
        assert relative(c.state.parameters, recorded.trajectory.stages[-1].last.parameters) == 0


def test_it_errs_less_than_the_arm_alone(tmp_path: Path, bare: Recorded) -> None:
    dense = train(tmp_path, ADAM, build_mlp, every=1)
    c = estimate(bare)[ARMS[1]]
    final, stage = bare.trajectory.stages[-1].last.parameters, bare.trajectory.stages[-1]
    exact = parameters(retrain(dense, "two"))
    steps = Simulation(1.0, 0).steps(stage, declared()["three"], bare.datasets)
    ids = [step.batches[0].ids for step in steps]
    alone = _trained(bare, bare.trajectory.stages[1].first.parameters, ids)
    size, ours, theirs = (_apart(exact, other) for other in (final, c.state.parameters, alone))
    assert ours < 0.7 * theirs
    assert ours < 0.7 * size


def _apart(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((left[n] - right[n]).square().sum()) for n in left))


def test_stages_left_out_together_are_crossed_by_none(bare: Recorded) -> None:
    context = context_of(bare.rerun(), declared=declared())
    both, one = Arm.without("one", "two"), Arm.without("two")
    found = SimulatedReplay().estimate(context, [both, one])
    assert list(found[both].path) == ["three"]
    assert found[both].gradients == found[one].gradients == 1.5 * STEPS
    assert _apart(found[both].state.parameters, found[one].state.parameters) > 0.01


# --- a recorded state, moved ----------------------------------------------------------------------


def test_weights_are_shifted_variances_scaled_and_counters_the_arms_own() -> None:
    def state(
        weight: float, mean: float, var: float, first: float, second: float, step: int
    ) -> Any:
        moments = {"exp_avg": Tensor([first, 1]), "exp_avg_sq": Tensor([second, 0])}
        return State(
            {"w": Tensor([weight])},
            {"mean": Tensor([mean]), "var": Tensor([var]), "batches": torch.tensor(step)},
            {"w": {**moments, "step": torch.tensor(float(step))}},
        )

    moved = anchored(state(1, 1, 2, 3, 4, 9), state(5, -1, 6, -1, 3, 4), state(2, 1, 4, 2, 6, 9))
    assert moved.parameters["w"] == 1 + 5 - 2
    assert moved.buffers["mean"] == 1 + -1 - 1
    assert moved.buffers["var"] == 2 * 6 / 4
    assert moved.buffers["batches"] == 4
    slots = moved.optimizer_state["w"]
    assert slots["exp_avg"].tolist() == [3 + -1 - 2, 1]
    assert slots["exp_avg_sq"].tolist() == [4 * 3 / 6, 0]
    assert slots["step"] == 4


# --- orders, budgets, refusals --------------------------------------------------------------------


def test_an_order_is_drawn_for_each_stage_and_step_and_nested_in_its_rows(bare: Recorded) -> None:
    two, three = bare.trajectory.stages[1:]
    known = declared()["two"]

    def rows(stage: Any, share: float, order: int) -> list[tuple[int, ...]]:
        steps = Simulation(share, order).steps(stage, known, bare.datasets)
        return [step.batches[0].ids for step in steps]

    whole, half = rows(two, 1.0, 0), rows(two, 0.5, 0)
    assert len({*whole, *rows(three, 1.0, 0), *rows(two, 1.0, 1)}) == 3 * STEPS
    assert all(few == many[: BATCH // 2] for few, many in zip(half, whole, strict=True))
    assert all(len(set(ids)) == BATCH for ids in whole)


def test_its_twin_has_another_order_and_half_of_the_rows(bare: Recorded) -> None:
    twin = SimulatedReplay().twin()
    assert twin == SimulatedReplay(order=1, coarser=0.5)
    ours, theirs = estimate(bare, 100), estimate(bare, 100, twin)
    spent, less = (sum(c.gradients for c in found.values()) for found in (ours, theirs))
    assert (spent, less) == (100, 50)
    assert spent + less == SimulatedReplay.with_twin * 100
    assert all(_apart(c.delta, theirs[arm].delta) > 0 for arm, c in ours.items())


@pytest.mark.parametrize("budget", [40, 55, 99])
def test_it_keeps_to_its_budget_and_forecasts_it(bare: Recorded, budget: int) -> None:
    terms = Terms(budget=budget, declared=declared())
    forecast = SimulatedReplay().forecast(bare.trajectory, ARMS, terms)
    found = estimate(bare, budget)
    for arm, c in found.items():
        assert c.gradients == pytest.approx(forecast.shares[arm], abs=1e-3)
    assert budget * 0.6 < forecast.gradients <= budget


def test_a_budget_that_pays_for_hardly_any_row_is_refused(bare: Recorded) -> None:
    least = SimulatedReplay().least(bare.trajectory, ARMS, Terms(declared=declared()))
    assert least == math.ceil(5 * STEPS * 2 / BATCH)  # 0.3 of 8 rows
    with pytest.raises(BudgetError, match=f"needs {least}"):
        estimate(bare, least - 1)
    assert estimate(bare, least)


def test_rows_that_cannot_be_drawn_are_refused_by_name(bare: Recorded) -> None:
    rerun = bare.rerun()
    rerun.datasets = {}
    with pytest.raises(EstimationError, match="'data'"):
        SimulatedReplay().estimate(context_of(rerun, declared=declared()), ARMS)
    undeclared = context_of(bare.rerun(), declared={"two": Declared(Constant())})
    with pytest.raises(EstimationError, match="'three'") as error:
        SimulatedReplay().estimate(undeclared, ARMS)
    assert "optimizer.schedule" in error.value.remedy
