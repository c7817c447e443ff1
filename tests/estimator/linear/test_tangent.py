"""Tangents against finite differences of the whole gated training run, and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from estimates import replay, sweep
from gated_training import OPTIMIZERS, build_embedding, gated
from torch import Tensor, nn
from training import (
    SGD3,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_routed,
    build_tied,
    parameters,
    relative,
    retrain,
    train,
)

from auditspec.errors import UnsupportedError
from auditspec.estimator.interventions import Arm


@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_order_equals_finite_differences_of_gated_training(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str
) -> None:
    """Reset and carried boundaries, two groups, a schedule, clipping, microbatches, sparse states."""
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options, microbatches=2),
        StagePlan("two", optimizer=name, options=options, split=True, shift=1, clip_norm=0.3),
        StagePlan("three", shift=3, carry=True, split=True),
    )
    recorded = train(tmp_path, plan, build, every=4)
    carried = "reset" if optimizer == "sgd" else "carry"  # plain SGD has no state to carry
    assert [s.header.boundary for s in recorded.trajectory.stages] == ["reset", "reset", carried]
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {s.id: "first-order" for s in plan})
    eps = 1e-4
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        difference = {n: (up[n] - down[n]) / (2 * eps) for n in up}
        assert relative(found[stage.id].delta, difference) < 1e-5
        assert relative(difference, {n: torch.zeros_like(t) for n, t in up.items()}) > 1e-3


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_displacement_of_parameters_that_freeze_later_is_followed(
    tmp_path: Path, optimizer: str
) -> None:
    """A later stage's gradient depends on frozen weights that this stage moved."""
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options),
        StagePlan("two", optimizer=name, options=options, shift=1, frozen=("one",), lean=True),
        StagePlan("three", optimizer=name, options=options, shift=3, frozen=("two.bias",)),
    )
    recorded = train(tmp_path, plan, every=4)
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {s.id: "first-order" for s in plan})
    eps = 1e-4
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        difference = {n: (up[n] - down[n]) / (2 * eps) for n in up}
        assert relative(found[stage.id].delta, difference) < 1e-5
    assert found["one"].delta["one.weight"].abs().max() > 0
    assert found["two"].delta["two.weight"].abs().max() > 0


@pytest.mark.parametrize("carry", [False, True], ids=["reset", "carry"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize(
    ("extend", "frozen"),
    [
        ("add_adapters", ("one.base",)),
        ("new_head", ()),
        ("grow_token_bias", ()),
        ("copy_adapters", ("one.base",)),
        ("load_head", ()),
        ("add_teacher", ("teacher",)),
    ],
)
def test_first_order_crosses_a_change_of_the_model(
    tmp_path: Path, extend: str, frozen: tuple[str, ...], optimizer: str, carry: bool
) -> None:
    """Against finite differences; what was added starts alike in both worlds."""
    if carry and extend in ("new_head", "load_head", "copy_adapters"):
        pytest.skip("an optimizer cannot be carried with the parameters of a head that is gone")
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options),
        StagePlan("two", 6, name, options, shift=1, frozen=frozen, extend=extend, carry=carry),
        StagePlan("three", 6, name, options, shift=3, frozen=frozen, lean=True),
    )
    recorded = train(tmp_path, plan, every=4)
    assert recorded.trajectory.stages[1].header.boundary == ("carry" if carry else "reset")
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {s.id: "first-order" for s in plan})
    eps = 1e-4
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        difference = {n: (up[n] - down[n]) / (2 * eps) for n in up}
        assert relative(found[stage.id].delta, difference) < 1e-5
        assert found[stage.id].delta.keys() == final.parameters.keys()


def test_first_order_follows_a_parameter_that_its_steps_drop(tmp_path: Path) -> None:
    """Its displacement moves the loss's gradient, though its own gradient is not used."""
    plan = (
        StagePlan("one"),
        StagePlan("two", shift=1, dropped=("one.bias",)),
        StagePlan("three", shift=2),
    )
    recorded = train(tmp_path, plan, every=4)
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {s.id: "first-order" for s in plan})
    eps = 1e-4
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        difference = {n: (up[n] - down[n]) / (2 * eps) for n in up}
        assert relative(found[stage.id].delta, difference) < 1e-5


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_first_order_follows_the_decay_of_heads_that_a_step_does_not_use(
    tmp_path: Path, optimizer: str
) -> None:
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", 8, name, options, keep_gradients=True),
        StagePlan("two", 8, name, options, shift=1),
        StagePlan("three", 8, name, options, shift=3, keep_gradients=True),
    )
    recorded = train(tmp_path, plan, build_routed, every=4)
    found = sweep(
        recorded.rerun(), recorded.trajectory.stages[-1].last, {s.id: "first-order" for s in plan}
    )
    eps = 1e-4
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        difference = {n: (up[n] - down[n]) / (2 * eps) for n in up}
        assert relative(found[stage.id].delta, difference) < 1e-5


def test_displacement_is_exact_for_a_linear_recursion(tmp_path: Path) -> None:
    """A linear model under squared error with SGD is linear in theta: displacement is exact."""
    recorded = train(tmp_path, SGD3, build_linear, every=3, objective=squared_error)
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {"one": "displacement", "two": "displacement"})
    for stage in ("one", "two"):
        exact = replay(recorded.rerun(), final, Arm.without(stage))
        assert relative(found[stage].delta, exact.delta) < 1e-10


@pytest.mark.parametrize("carry", [False, True], ids=["reset", "carry"])
def test_displacement_converges_to_replay_with_the_rate(tmp_path: Path, carry: bool) -> None:
    """A stage ten times gentler is linearised about ten times better (second-order remainder)."""
    errors = []
    for number, rate in enumerate((1e-2, 1e-3)):
        plan = (
            StagePlan("one", options={"lr": rate, "momentum": 0.9}),
            StagePlan("two", options={"lr": 0.1, "momentum": 0.9}, shift=1, carry=carry),
        )
        recorded = train(tmp_path / str(number), plan)
        final = recorded.trajectory.stages[-1].last
        estimate = sweep(recorded.rerun(), final, {"one": "displacement"})["one"]
        exact = parameters(retrain(recorded, "one"))
        delta = {n: exact[n] - final.parameters[n] for n in exact}
        errors.append(relative(estimate.delta, delta))
    assert errors[1] < errors[0] / 5


def test_the_embedding_rows_that_no_example_uses_stay_finite(tmp_path: Path) -> None:
    plan = (
        StagePlan("one", optimizer="AdamW", options={"lr": 0.01}),
        StagePlan("two", optimizer="AdamW", options={"lr": 0.01}, shift=1),
    )
    recorded = train(tmp_path, plan, build_embedding)
    final = recorded.trajectory.stages[-1].last
    for method in ("first-order", "displacement"):
        found = sweep(recorded.rerun(), final, {"one": method})
        embedding = found["one"].delta["embed.weight"]
        assert torch.isfinite(embedding).all()
        assert embedding[:5].abs().max() > 0


def test_costs_are_counted(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3)
    final = recorded.trajectory.stages[-1].last
    one = sweep(recorded.rerun(), final, {"one": "displacement"})["one"]
    assert one.gradients == pytest.approx(12 * 3)  # twelve later steps: gradient and H v each
    last = sweep(recorded.rerun(), final, {"three": "displacement"})["three"]
    assert last.gradients == 0
    first = recorded.trajectory.stages[-1].first
    assert relative(last.state.parameters, first.parameters) < 1e-15


def test_float32_follows_float64(tmp_path: Path) -> None:
    wide = train(tmp_path / "wide", SGD3)
    narrow = train(tmp_path / "narrow", SGD3, build_mlp32)
    deltas = [
        sweep(r.rerun(), r.trajectory.stages[-1].last, {"one": "first-order"})["one"].delta
        for r in (narrow, wide)
    ]
    assert relative(deltas[0], deltas[1]) < 1e-3


def test_batchnorm_is_refused_by_name(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_normed)
    final = recorded.trajectory.stages[-1].last
    with pytest.raises(UnsupportedError, match="BatchNorm") as error:
        sweep(recorded.rerun(), final, {"one": "displacement"})
    assert "replay" in error.value.remedy


# --- models of these tests ----------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.map(x)


def build_linear() -> nn.Module:
    return Linear().double()


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    return ((model(x, token) - nn.functional.one_hot(y, 3)) ** 2).sum(1).mean()
