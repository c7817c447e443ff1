"""Training code in another precision than it was written for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import StagePlan, build_mlp32, load_batch, train

from auditspec.engine.widening import Widening

WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
MIX = torch.eye(3) + 0.1
WEIGHTED = nn.CrossEntropyLoss(weight=WEIGHTS)


def held_weights(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, weight=WEIGHTS)


def held_module(logits: Tensor, y: Tensor) -> Tensor:
    return WEIGHTED(logits, y)


def held_matrix(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits @ MIX, y)


def in_place(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.zeros(3, 3).double().addmm_(logits.T @ logits, MIX), y[:3])


@pytest.mark.parametrize("loss", [held_weights, held_module, held_matrix, in_place])
def test_what_the_code_holds_itself_takes_part_in_float64(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Value, gradient, and second derivative are those of the constants cast by hand."""
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    with pytest.raises(RuntimeError):
        loss(logits, y)
    with Widening(torch.float32, torch.float64):
        value = loss(logits, y)
    (found,) = torch.autograd.grad(value, logits, create_graph=True)
    (second,) = torch.autograd.grad(found.square().sum(), logits)
    cast: dict[str, Any] = {"WEIGHTS": WEIGHTS.double(), "MIX": MIX.double()}
    cast["WEIGHTED"] = nn.CrossEntropyLoss(weight=WEIGHTS.double())
    before = {name: globals()[name] for name in cast}
    globals().update(cast)
    try:
        wanted = loss(logits, y)
    finally:
        globals().update(before)
    (slope,) = torch.autograd.grad(wanted, logits, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), logits)
    assert value.dtype == torch.float64
    assert torch.equal(value, wanted)
    assert torch.allclose(found, slope, rtol=1e-14)
    assert torch.allclose(second, curvature, rtol=1e-12)


def test_what_is_changed_in_place_keeps_its_precision() -> None:
    held, wide = torch.zeros(3, 3), MIX.double()
    rows = torch.tensor([0, 2])
    with Widening(torch.float32, torch.float64):
        held.addmm_(wide, wide)
        held[rows] = wide[rows]
    wanted = (MIX @ MIX).index_copy(0, rows, MIX[rows])
    assert held.dtype == torch.float32
    assert torch.allclose(held, wanted)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(x.shape, dtype=x.dtype),
    "normal_": lambda x: torch.empty_like(x).normal_(1.0, 2.0),
    "uniform_": lambda x: x.new_empty(x.shape).uniform_(-1, 1),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.4)),
    "dropout": lambda x: F.dropout(torch.ones_like(x), 0.5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_those_of_the_record(name: str) -> None:
    draw = DRAWS[name]
    torch.manual_seed(1)
    wanted = draw(torch.zeros(9, 7))
    torch.manual_seed(1)
    with Widening(torch.float32, torch.float64):
        found = draw(torch.zeros(9, 7, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert torch.equal(found, wanted.double())


def test_an_error_that_is_none_of_precision_stays_what_it_was() -> None:
    with (
        Widening(torch.float32, torch.float64),
        pytest.raises(RuntimeError, match="mat1 and mat2 shapes"),
    ):
        torch.zeros(2, 3).double() @ torch.zeros(2, 3)


def noisy(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Noise on the inputs, and class weights in float32."""
    x, token, y = batch
    x = x.to(next(model.parameters()))
    return F.cross_entropy(model(x + torch.randn_like(x), token), y, weight=WEIGHTS)


def test_a_run_repeats_in_float64_but_for_rounding(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one"),), build_mlp32, objective=noisy)
    (stage,) = recorded.trajectory.stages
    rerun = recorded.rerun(dtype=torch.float64)
    assert load_batch(recorded.datasets["data"], [0])[0].dtype == torch.float64
    end = rerun.run(stage, stage.first)
    for name, p in end.parameters.items():
        assert p.dtype == torch.float64
        assert torch.allclose(p, stage.last.parameters[name].double(), atol=1e-5)
