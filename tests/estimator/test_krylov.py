"""Krylov against exact replay: closed on quadratics, convergent, and honest about what it neglects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from training import (
    ROWS,
    Recorded,
    StagePlan,
    relative,
    train,
)

from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.krylov import krylov
from auditspec.estimator.replay import replay

EVERY_ROW = 10**6


class Linear(nn.Module):
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


def estimate(recorded: Recorded, *stages: str, **options: Any) -> dict[str, Counterfactual]:
    final = recorded.trajectory.stages[-1].last
    return krylov(recorded.rerun(), final, stages, **options)


def exact(recorded: Recorded, stage: str) -> Counterfactual:
    return replay(recorded.rerun(), recorded.trajectory.stages[-1].last, stage)


SGD: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.05},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02, "dampening": 0.3},
    "nesterov": {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    "maximize": {"lr": 0.01, "momentum": 0.5, "maximize": True, "weight_decay": 0.02},
}


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
@pytest.mark.parametrize("segments", [1, 3])
def test_a_quadratic_loss_under_sgd_is_exact(
    tmp_path: Path, options: dict[str, Any], segments: int
) -> None:
    """Full batches, a cosine schedule, momentum across segments' borders; a block of stages."""
    plan = tuple(FullBatch(name, steps=12, options=options) for name in ("one", "two", "three"))
    recorded = train(tmp_path, plan, build_linear, every=5, objective=squared_error)
    found = estimate(
        recorded,
        "two",
        "one",
        vectors=30,
        segments=segments,
        examples=EVERY_ROW,
        curvature="hessian",
    )
    for stage in ("one", "two"):
        assert relative(found[stage].delta, exact(recorded, stage).delta) < 1e-8
        assert found[stage].diagnostics["nonlinearity"] < 1e-8
        assert not found[stage].exact
