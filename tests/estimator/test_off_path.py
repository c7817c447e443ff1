"""Objectives that do otherwise off the recorded path, and honest ones that must not be taken for such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from said import said
from torch import Tensor, nn
from training import StagePlan, build_dropped, build_mlp, build_normed, train

from auditspec.checks.off_path import OffPathCheck, changed
from auditspec.engine.rerun import Rerun
from auditspec.estimator.off_path import OffPath, off_path, outputs_off_path
from auditspec.record.state import State

PLAN = (StagePlan("one", steps=6), StagePlan("two", steps=6, shift=1))
Objective = Callable[[nn.Module, Any], Tensor]


def walk(
    folder: Path, build: Any, dishonest: Callable[[Objective, State], Objective] | None
) -> OffPath:
    """From the second stage's recorded start to that without the first."""
    recorded = train(folder, PLAN, build)
    rerun: Rerun = recorded.rerun(dtype=torch.float64)
    one, two = rerun.trajectory.stages
    if dishonest is not None:
        honest = rerun.functions.objectives["two"]
        rerun.functions.objectives["two"] = dishonest(honest, two.first)  # type: ignore[index]
    without = rerun.carry_over(1, one.first)
    return off_path(rerun, two, two.steps[0], two.first, without)


def distance(model: nn.Module, state: State) -> float:
    """Of the model's weights from recorded ones."""
    held = dict(model.named_parameters())
    return float(sum((held[n].detach() - p).square().sum() for n, p in state.parameters.items()))


def another_by_identity(honest: Objective, recorded: State) -> Objective:
    """Another loss wherever the weights are not exactly the recorded ones."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        value = honest(model, batch)
        return value if distance(model, recorded) == 0 else 1.5 * value

    return objective


def another_by_distance(honest: Objective, recorded: State) -> Objective:
    """Another loss once the weights are some way off."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        value = honest(model, batch)
        return value if distance(model, recorded) < 0.01 else value + 0.2

    return objective


def another_gradient(honest: Objective, recorded: State) -> Objective:
    """The same value everywhere, and off the path the gradient of its opposite."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        value = honest(model, batch)
        return value if distance(model, recorded) == 0 else 2 * value.detach() - value

    return objective


@pytest.mark.parametrize("dishonest", [another_by_identity, another_by_distance, another_gradient])
def test_an_objective_that_recognises_the_recorded_weights_is_caught(
    tmp_path: Path, dishonest: Any
) -> None:
    found = walk(tmp_path, build_mlp, dishonest)
    assert changed(found)
    result = OffPathCheck([found], {}, "one").run()
    assert (result.outcome, result.statistic) == ("fail", 1)
    assert "two" in said(result.reasons)


@pytest.mark.parametrize("build", [build_mlp, build_normed, build_dropped])
def test_an_honest_objective_is_not(tmp_path: Path, build: Any) -> None:
    found = walk(tmp_path, build, None)
    assert found.jump < 1e-3
    assert max(found.slope_recorded, found.slope_counterfactual) < 0.05
    assert OffPathCheck([found], {}, "one").run().outcome == "pass"


def test_a_stopped_gradient_is_the_same_on_and_off_the_path(tmp_path: Path) -> None:
    """A loss beside a frozen copy of its own value, as a baseline is: its slope disagrees everywhere."""

    def stopped(honest: Objective, _: State) -> Objective:
        return lambda model, batch: (v := honest(model, batch)) * 2 - v.detach()

    found = walk(tmp_path, build_mlp, stopped)
    assert found.slope_recorded > 0.25
    assert not changed(found)


# --- outputs ------------------------------------------------------------------------------------------


def reads(lie: Callable[[Tensor, float], Tensor]) -> tuple[Any, State, State]:
    """Outputs of a network that smoothly follow its weights, and what a lie makes of them by the distance gone."""
    torch.manual_seed(0)
    x, first, second = torch.randn(20, 4), torch.randn(4, 3), torch.randn(4, 3)
    start = State({"w": first}, {})

    def read(state: State) -> dict[str, Tensor]:
        gone = float((state.parameters["w"] - first).norm())
        return {"b": lie(torch.tanh(x @ state.parameters["w"]), gone)}

    return read, start, State({"w": second}, {})


@pytest.mark.parametrize(
    "lie",
    [
        lambda outputs, gone: outputs if gone == 0 else -outputs,
        lambda outputs, gone: outputs if gone < 1e-3 else outputs + 0.1,
        lambda outputs, gone: outputs if gone < 1.0 else outputs * 0,
        lambda outputs, gone: outputs if gone == 0 else outputs[torch.randperm(20)],
    ],
    ids=["by-identity", "near", "halfway", "other-rows"],
)
def test_outputs_that_recognise_the_deployed_weights_are_caught(lie: Any) -> None:
    jumps = outputs_off_path(*reads(lie))
    assert jumps["b"] > 0.02
    result = OffPathCheck([], jumps, "one").run()
    assert result.outcome == "fail"
    assert [d.behavior for d in result.details] == ["b"]


@pytest.mark.parametrize(
    "honest",
    [
        lambda outputs, gone: outputs,
        lambda outputs, gone: outputs.relu(),
        lambda outputs, gone: outputs + (gone > 1) * (torch.arange(20) < 5)[:, None],  # rerouted
    ],
    ids=["smooth", "kinked", "a-few-jump"],
)
def test_outputs_of_ordinary_models_are_not(honest: Any) -> None:
    jumps = outputs_off_path(*reads(honest))
    assert jumps["b"] < 1e-3
    assert OffPathCheck([], jumps, "one").run().outcome == "pass"


def test_outputs_that_move_nowhere_do_not_jump() -> None:
    read, start, _ = reads(lambda outputs, gone: outputs * 0)
    assert outputs_off_path(read, start, start) == {"b": 0.0}
