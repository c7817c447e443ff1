"""Taped gradients against ordinary ones, and objectives that cannot be taped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import StagePlan, build_dropped, build_mlp, cross_entropy, train

from auditspec.errors import EstimationError
from auditspec.estimator.linear.points import Points

Objective = Callable[[nn.Module, Any], Tensor]


class Counted:
    """An objective with the calls that it had; a factor of them makes it fickle."""

    def __init__(self, factor: Callable[[int], float] = lambda calls: 1.0) -> None:
        self.calls, self.factor = 0, factor

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        return cross_entropy(model, batch) * self.factor(self.calls)


def gradients(
    tmp_path: Path,
    objective: Objective,
    build: Callable[[], nn.Module] = build_mlp,
    steps: int = 30,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of every step at its recorded point, with passes that are taped and ordinary ones."""
    plan = (StagePlan("one", steps=steps, options={"lr": 0.1}, microbatches=2),)
    recorded = train(tmp_path, plan, build, every=1)
    rerun = recorded.rerun()
    stage = rerun.trajectory.stages[0]
    points = Points(rerun, stage, keep_gradients=False)

    def at(k: int, objective: Objective, passes: Any) -> Tensor:
        points.restore(points.read(k))
        rerun.functions.objectives["one"] = objective
        step_gradient = rerun.gradient(stage, points.steps[k], points.optimizer, passes=passes)
        return points.layout.vector(step_gradient.gradients)

    with points.memory, rerun.training():
        taped = [at(k, objective, points.passes) for k in range(steps)]
        usual = [at(k, cross_entropy, None) for k in range(steps)]
    return taped, usual


@pytest.mark.parametrize("build", [build_mlp, build_dropped])
def test_taped_gradients_are_the_ordinary_ones(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    objective = Counted()
    taped, usual = gradients(tmp_path, objective, build)
    for ours, theirs in zip(taped, usual, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-13, atol=1e-15)
    # 60 passes: one written down, those of uses 1 and 17 held against it; dropout's random numbers are new
    assert objective.calls == 3


def test_an_objective_that_looks_at_values_is_computed_as_ever(tmp_path: Path) -> None:
    calls = []

    def looking(model: nn.Module, batch: Any) -> Tensor:
        calls.append(loss := cross_entropy(model, batch))
        return loss * (1.0 if loss.item() < 1e9 else 2.0)

    taped, usual = gradients(tmp_path, looking)
    assert all(torch.equal(a, b) for a, b in zip(taped, usual, strict=True))
    assert len(calls) == 60 + 1


def test_an_objective_that_differs_at_once_is_computed_as_ever(tmp_path: Path) -> None:
    objective = Counted(lambda calls: 1.0 if calls != 1 else 2.0)
    taped, usual = gradients(tmp_path, objective)
    assert all(torch.equal(a, b) for a, b in zip(taped[1:], usual[1:], strict=True))
    assert objective.calls == 60


def test_an_objective_that_changes_later_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EstimationError, match="no function of model and batch") as error:
        gradients(tmp_path, Counted(lambda calls: 1.0 if calls < 3 else 2.0))
    assert "random numbers" in error.value.remedy
