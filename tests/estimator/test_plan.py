"""Which method each stage gets, and forecasts against gradients that were really counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from estimates import context_of
from said import said
from torch import Tensor, nn
from training import Mlp, Recorded, StagePlan, build_normed, by_stage, train

from auditspec.errors import BudgetError, EstimationError, UnsupportedError
from auditspec.estimator import plan
from auditspec.estimator.compute import chosen_counterfactuals
from auditspec.estimator.forecast import parameters_of
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.plan import Choice, choose, gradients_of
from auditspec.estimator.simulated.simulated import SimulatedReplay
from auditspec.schedules import Constant

PLAN = (
    StagePlan("one", steps=5, microbatches=3),
    StagePlan("two", steps=4, microbatches=2, shift=1),
    StagePlan("three", steps=6, shift=2),
    StagePlan("four", steps=3, microbatches=2, shift=3),
)
COST = {"one": 15, "two": 8, "three": 6, "four": 6}
"""Gradients in one pass over each stage."""
REPLAY = {"one": 20, "two": 12, "three": 6, "four": 0}
"""Of the later stages."""


class Counted(Mlp):
    """A floating buffer that moves with every pass in training, as in a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return super().forward(x, token)


def build_counted() -> nn.Module:
    return Counted().double()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN)


def test_where_no_steps_were_recorded_both_worlds_are_simulated(tmp_path: Path) -> None:
    bare = train(tmp_path, PLAN, every="boundaries").trajectory
    known = {stage.id: Declared(Constant(), batch=8) for stage in PLAN}
    terms = Terms(declared=known)
    found = choose(bare, "auto", terms)
    assert methods(found) == ["simulated-replay"] * 3 + ["replay"]
    assert sum(choice.gradients for choice in found) == (1 + 1) * 4 + (2 + 1) * 6 + (3 + 1) * 3
    assert "order of the data is simulated" in said(found[0].reason)
    assert plan.expected(bare, "auto", 10**6) == SimulatedReplay()
    least = SimulatedReplay().least(bare, Arm.each(["one", "two", "three"]), terms)
    with pytest.raises(BudgetError, match=f"needs {least}"):
        choose(bare, "auto", replace(terms, budget=least - 1))
    with pytest.raises(EstimationError, match="learning rates are not known"):
        choose(bare, "auto", Terms())


def methods(choices: tuple[Choice, ...]) -> list[str]:
    return [choice.method for choice in choices]


def total(choices: tuple[Choice, ...]) -> float:
    return sum(choice.gradients for choice in choices)


def test_a_pass_costs_its_microbatches(recorded: Recorded) -> None:
    assert {s.id: gradients_of(s) for s in recorded.trajectory.stages} == COST


@pytest.mark.parametrize("budget", [None, 38, 1000])
def test_replay_everywhere_where_it_is_paid_for(recorded: Recorded, budget: int | None) -> None:
    choices = choose(recorded.trajectory, "auto", Terms(budget=budget))
    assert {c.stage: c.gradients for c in choices} == REPLAY
    assert methods(choices) == ["replay"] * 4
    assert choices == choose(recorded.trajectory, "replay", Terms(budget=budget))


def test_rows_of_every_step_where_the_model_is_large(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "LARGEST", 10)
    terms = Terms(budget=37)
    choices = choose(recorded.trajectory, "auto", terms)
    assert methods(choices) == ["sub-batch-replay"] * 3 + ["replay"]
    assert total(choices) <= 37
    assert "some rows of every step" in said(choices[0].reason)
    assert str(parameters_of(recorded.trajectory)) in said(choices[0].reason)
    monkeypatch.setattr(plan, "require_rows", refuse)
    dense = train(tmp_path, PLAN, every=1).trajectory
    choices = choose(dense, "auto", terms)
    assert methods(choices) == ["paired-replay"] * 3 + ["replay"]
    assert total(choices) <= 37
    assert "rows" not in said(choices[0].reason)


def refuse(_: object) -> None:
    raise UnsupportedError("no rows", "none")


def test_nothing_is_cheaper_than_replay(recorded: Recorded) -> None:
    """Displacement of stage one alone costs 20 * 3 gradients, its replay 20."""
    with pytest.raises(EstimationError, match="budget is 37 gradients") as error:
        choose(recorded.trajectory, "auto", Terms(budget=37))
    cheapest = int(error.value.message.split()[-1])
    assert str(cheapest) in error.value.remedy
    assert choose(recorded.trajectory, "auto", Terms(budget=cheapest))


def test_a_plan_keeps_to_its_budget_or_names_the_one_it_needs(recorded: Recorded) -> None:
    for budget in range(1, 60):
        try:
            choices = choose(recorded.trajectory, "auto", Terms(budget=budget))
        except EstimationError as error:
            needed = int(error.message.split()[-1])
            assert needed > budget
            assert total(choose(recorded.trajectory, "auto", Terms(budget=needed))) <= needed
        else:
            assert total(choices) <= budget


@pytest.mark.parametrize("method", ["displacement", "first-order", "replay"])
def test_a_method_that_was_asked_for_is_used_for_all_but_the_last(
    recorded: Recorded, method: str
) -> None:
    choices = choose(recorded.trajectory, method, Terms())
    assert methods(choices) == [method] * 3 + ["replay"]
    assert choices[-1].gradients == 0
    with pytest.raises(EstimationError, match=f"{method} needs"):
        choose(recorded.trajectory, method, Terms(budget=int(total(choices)) - 1))
    assert choose(recorded.trajectory, method, Terms(budget=int(total(choices)) + 1)) == choices


@pytest.mark.parametrize("method", ["displacement", "first-order", "replay"])
def test_the_forecast_is_what_is_counted(recorded: Recorded, method: str) -> None:
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    choices = choose(recorded.trajectory, method, Terms())
    chosen = {c.stage: c.estimator for c in choices}
    found = by_stage(chosen_counterfactuals(context_of(rerun, final), chosen).estimates)
    for choice in choices:
        assert found[choice.stage].gradients == pytest.approx(choice.gradients, abs=2e-3)
        assert found[choice.stage].method == choice.method
        assert found[choice.stage].exact == (choice.method == "replay")
    # The closed form of a sweep: one gradient a step, and two more for each direction on it.
    passes = {"displacement": (0, 1, 2, 3), "first-order": (1, 2, 3, 3)}
    if method != "replay":
        crossing = dict(zip(COST, passes[method], strict=True))
        expected = sum(COST[s] * (1 + 2 * n) for s, n in crossing.items() if n)
        assert total(choices) == pytest.approx(expected, abs=5e-3)
        assert rerun.gradients == sum(COST[s] for s, n in crossing.items() if n)


def test_the_forecast_of_a_mixture_is_what_is_counted(recorded: Recorded) -> None:
    """One stage by a sweep, the others by replay."""
    swept = choose(recorded.trajectory, "displacement", Terms())
    replayed = choose(recorded.trajectory, "replay", Terms())
    choices = (*swept[:1], *replayed[1:])
    choices = (replace(choices[0], gradients=20 * 3), *choices[1:])
    rerun = recorded.rerun()
    chosen = {c.stage: c.estimator for c in choices}
    found = by_stage(chosen_counterfactuals(context_of(rerun), chosen).estimates)
    assert [found[c.stage].gradients for c in choices] == [60, 12, 6, 0]
    guard = (
        2  # batched arms are held against one ordinary gradient of stage four's two microbatches
    )
    assert rerun.gradients == 20 + 12 + 6 + guard


def test_what_cannot_be_differentiated_is_told_before_anything_runs(tmp_path: Path) -> None:
    normed = train(tmp_path / "normed", PLAN, build_normed).trajectory
    plan = (*PLAN[:2], StagePlan("three", optimizer="RMSprop", options={"lr": 0.01}))
    rms = train(tmp_path / "rms", plan).trajectory
    for trajectory, word in ((normed, "BatchNorm"), (rms, "RMSprop")):
        for method, budget in (("displacement", None), ("first-order", None)):
            with pytest.raises(UnsupportedError, match=word):
                choose(trajectory, method, Terms(budget=budget))
        assert methods(choose(trajectory, "auto", Terms())) == ["replay"] * len(trajectory.stages)


def test_batch_statistics_are_followed_under_a_budget(tmp_path: Path) -> None:
    """BatchNorm's own; a buffer that only the model knows to move asks for exact replay."""
    normed = train(tmp_path / "normed", PLAN, build_normed, every=1).trajectory
    assert methods(choose(normed, "auto", Terms(budget=37))) == ["paired-replay"] * 3 + ["replay"]
    counted = train(tmp_path / "counted", PLAN, build_counted).trajectory
    with pytest.raises(BudgetError, match="floating buffers") as error:
        choose(counted, "auto", Terms(budget=37))
    assert "38 or more" in error.value.remedy
    assert methods(choose(counted, "auto", Terms(budget=38))) == ["replay"] * 4


def test_boundaries_serve_a_single_stage_only(tmp_path: Path) -> None:
    several = train(tmp_path / "several", PLAN, every="boundaries").trajectory
    for method in ("auto", "replay", "displacement"):
        with pytest.raises(EstimationError, match="'two' was recorded without its steps"):
            choose(several, method, Terms())
    one = train(tmp_path / "one", PLAN[:1], every="boundaries").trajectory
    (choice,) = choose(one, "auto", Terms(budget=1))
    assert (choice.method, choice.gradients) == ("replay", 0)


def test_displacement_does_not_cross_a_carried_counter(tmp_path: Path) -> None:
    """Leaving a stage out would take its steps off Adam's counter; SGD has none."""
    adam = (
        StagePlan("one", optimizer="AdamW", options={"lr": 0.01}),
        StagePlan("two", optimizer="AdamW", options={"lr": 0.01}, carry=True, shift=1),
    )
    carried = train(tmp_path / "adam", adam).trajectory
    with pytest.raises(UnsupportedError, match="'two' carries AdamW's counter"):
        choose(carried, "displacement", Terms())
    assert methods(choose(carried, "auto", Terms())) == ["replay"] * 2
    momentum = (StagePlan("one"), StagePlan("two", carry=True, shift=1))
    plain = train(tmp_path / "sgd", momentum).trajectory
    assert methods(choose(plain, "displacement", Terms())) == ["displacement", "replay"]
