"""The adjoint against the tangent, finite differences of gated training, and closed forms."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimates import adjoint, sweep
from gated_training import OPTIMIZERS, Embedded, build_embedding, gated
from torch import Tensor, nn
from training import (
    SGD3,
    Mlp,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    cross_entropy,
    load_batch,
    one_step,
    parameters,
    train,
)

from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.linear.checkpointing import most_states
from auditspec.record.state import State


def slopes_of(recorded: Recorded, count: int = 2) -> dict[str, dict[str, Tensor]]:
    """Slopes of class log-probabilities at theta_K; a behaviour that is smooth in theta."""
    model = recorded.model.requires_grad_()
    x, token, _ = load_batch(recorded.datasets["data"], range(12))
    found = {}
    for label in range(count):
        scores = nn.functional.log_softmax(model(x.to(next(model.parameters())), token), 1)
        slope = torch.autograd.grad(
            scores[:, label].mean(), list(model.parameters()), allow_unused=True
        )
        names = (n for n, _ in model.named_parameters())
        found[f"class {label}"] = {n: g for n, g in zip(names, slope, strict=True) if g is not None}
    return found


def inner(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return sum(float((left[n] * right[n]).sum()) for n in left)


def agree(recorded: Recorded) -> None:
    """The adjoint's effects are the tangent's, with both kinds of products."""
    final, slopes = recorded.trajectory.stages[-1].last, slopes_of(recorded)
    tangents = sweep(recorded.rerun(), final, {s.id: "first-order" for s in recorded.plan})
    exact = adjoint(recorded.rerun(), slopes)
    cheap = adjoint(recorded.rerun(), slopes, products="finite-difference")
    for behavior, slope in slopes.items():
        for stage in recorded.plan:
            wanted = -inner(slope, tangents[stage.id].delta)
            assert wanted != 0
            assert exact[behavior].steps[stage.id].shape == (stage.steps,)
            assert exact[behavior].effect(stage.id) == pytest.approx(wanted, rel=1e-9)
            assert cheap[behavior].effect(stage.id) == pytest.approx(wanted, rel=1e-4)


class Frozen(Mlp):
    """A first bias that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one.bias.requires_grad_(False)


class PartlyReached(Mlp):
    """A parameter that the loss never reaches, and one that is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(x, token) * self.scale


def build_frozen() -> nn.Module:
    return Frozen().double()


def build_partly_reached() -> nn.Module:
    return PartlyReached().double()


@pytest.mark.parametrize(
    "build",
    [build_mlp, build_tied, build_dropped, build_embedding, build_frozen, build_partly_reached],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
def test_the_adjoint_equals_the_tangent(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str, every: int
) -> None:
    """Reset and carried boundaries, two groups, a schedule, clipping, microbatches."""
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options, microbatches=2),
        StagePlan("two", optimizer=name, options=options, split=True, shift=1, clip_norm=0.3),
        StagePlan("three", shift=3, carry=True, split=True),
    )
    agree(train(tmp_path, plan, build, every=every))


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw"])
def test_the_effect_is_the_finite_difference_of_gated_training(
    tmp_path: Path, optimizer: str
) -> None:
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options),
        StagePlan("two", optimizer=name, options=options, shift=1, clip_norm=0.3, carry=True),
    )
    recorded = train(tmp_path, plan)
    slopes, eps = slopes_of(recorded), 1e-4
    found = adjoint(recorded.rerun(), slopes)
    for stage in plan:
        up, down = gated(recorded, stage.id, eps), gated(recorded, stage.id, -eps)
        moved = {n: (down[n] - up[n]) / (2 * eps) for n in up}
        for behavior, slope in slopes.items():
            wanted = inner(slope, moved)
            assert found[behavior].effect(stage.id) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
def test_parameters_that_freeze_and_thaw_are_followed_as_the_tangent_does(
    tmp_path: Path, optimizer: str, every: int
) -> None:
    """A stage's loss depends on frozen weights that an earlier stage moved."""
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options, frozen=("two.weight",)),
        StagePlan("two", 6, name, options, shift=1, frozen=("one",), lean=True, clip_norm=0.3),
        StagePlan("three", 6, name, options, shift=3, frozen=("two.bias",)),
    )
    agree(train(tmp_path, plan, every=every))


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
def test_a_change_of_the_model_is_crossed_as_the_tangent_does(
    tmp_path: Path, extend: str, frozen: tuple[str, ...], optimizer: str, carry: bool
) -> None:
    if carry and extend in ("new_head", "load_head", "copy_adapters"):
        pytest.skip("an optimizer cannot be carried with the parameters of a head that is gone")
    name, options = OPTIMIZERS[optimizer]
    plan = (
        StagePlan("one", optimizer=name, options=options),
        StagePlan("two", 6, name, options, shift=1, frozen=frozen, extend=extend, carry=carry),
        StagePlan("three", 6, name, options, shift=3, frozen=frozen, lean=True),
    )
    agree(train(tmp_path, plan, every=4))


def gated_step(recorded: Recorded, k: int, eps: float) -> dict[str, Tensor]:
    """theta_K of a one-stage run with the update of step k alone scaled by 1 - eps."""
    torch.manual_seed(0)
    model, data, stage = recorded.build(), recorded.datasets["data"], recorded.plan[0]
    optimizer = stage.make_optimizer(model)
    for step in range(stage.steps):
        before = parameters(model)
        optimizer_state = {
            n: {key: v.clone() for key, v in optimizer.state.get(p, {}).items()}
            for n, p in model.named_parameters()
        }
        one_step(
            model, optimizer, stage, step, lambda ids: cross_entropy(model, load_batch(data, ids))
        )
        if step != k:
            continue
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name] + (1 - eps) * (p - before[name]))
                for key, value in optimizer.state[p].items():
                    if key != "step":
                        old = optimizer_state[name].get(key, torch.zeros_like(value))
                        value.copy_(old + (1 - eps) * (value - old))
    return parameters(model)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_every_single_step_is_the_finite_difference_of_gating_it(
    tmp_path: Path, optimizer: str
) -> None:
    name, options = OPTIMIZERS[optimizer]
    recorded = train(tmp_path, (StagePlan("one", optimizer=name, options=options),))
    slopes, eps = slopes_of(recorded, 1), 1e-4
    (found,) = adjoint(recorded.rerun(), slopes).values()
    (slope,) = slopes.values()
    for k in range(6):
        up, down = gated_step(recorded, k, eps), gated_step(recorded, k, -eps)
        wanted = inner(slope, {n: (down[n] - up[n]) / (2 * eps) for n in up})
        assert found.steps["one"][k] == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_scores_of_the_data_weights_vanish_under_adam_and_ours_do_not(tmp_path: Path) -> None:
    """Scaling a stage's loss leaves Adam's steps alone: such a score says nothing of the stage."""
    plan = (StagePlan("one", optimizer="Adam", options={"lr": 0.01, "eps": 1e-12}, steps=10),)
    recorded = train(tmp_path, plan)
    (slope,) = (slopes := slopes_of(recorded, 1)).values()
    ours = adjoint(recorded.rerun(), slopes)["class 0"].effect("one")

    def reweighted(weight: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, data = recorded.build(), recorded.datasets["data"]
        optimizer = plan[0].make_optimizer(model)
        for step in range(plan[0].steps):
            one_step(
                model,
                optimizer,
                plan[0],
                step,
                lambda ids: weight * cross_entropy(model, load_batch(data, ids)),
            )
        return parameters(model)

    eps = 1e-3
    up, down = reweighted(1 + eps), reweighted(1 - eps)
    by_weight = inner(slope, {n: (up[n] - down[n]) / (2 * eps) for n in up})
    assert abs(by_weight) < 1e-4 * abs(ours)
    moved = inner(
        slope, {n: up[n] - t for n, t in recorded.trajectory.stages[0].first.parameters.items()}
    )
    assert abs(ours) > 0.1 * abs(moved)  # the size of what the stage did


def nothing(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return cross_entropy(model, batch) * 0


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_weight_decay_alone_has_its_closed_form(tmp_path: Path, optimizer: str) -> None:
    """Without a gradient theta shrinks by 1 - lr wd a step; step k's share is that of one update."""
    lr, decay = 0.1, 0.2
    plan = (StagePlan("one", optimizer=optimizer, options={"lr": lr, "weight_decay": decay}),)
    recorded = train(tmp_path, plan, objective=nothing)
    (slope,) = (slopes := slopes_of(recorded, 1)).values()
    found = adjoint(recorded.rerun(), slopes)["class 0"].steps["one"]
    steps = recorded.trajectory.stages[0].steps
    last = recorded.trajectory.stages[0].last.parameters
    # lambda_{k+1} . u_k = -lr_k wd prod_{j > k} (1 - lr_j wd) theta_k . slope, and theta_K is the product
    shrink = np.array([1 - step.groups[0]["lr"] * decay for step in steps])
    wanted = (shrink - 1) / shrink * inner(slope, last)
    assert np.allclose(found, wanted, rtol=1e-10, atol=0)
    assert np.abs(found).min() > 0


def test_embedding_rows_that_no_example_uses_stay_finite(tmp_path: Path) -> None:
    """The behaviour depends on them; Adam's second moment there is 0, and their effect is 0."""
    plan = (StagePlan("one", optimizer="AdamW", options={"lr": 0.01, "weight_decay": 0.0}),)
    recorded = train(tmp_path, plan, build_embedding)
    only_unused = torch.zeros(8, 4, dtype=torch.float64)
    only_unused[5:] = 1.0
    everything = torch.ones(8, 4, dtype=torch.float64)
    for products in ("exact", "finite-difference"):
        found = adjoint(
            recorded.rerun(),
            {"unused": {"embed.weight": only_unused}, "all": {"embed.weight": everything}},
            products=products,
        )
        assert found["unused"].effect("one") == 0
        assert np.isfinite(found["all"].steps["one"]).all()
        assert found["all"].effect("one") != 0


def test_the_unused_rows_do_not_spoil_finite_differences_in_float32(tmp_path: Path) -> None:
    """Their cotangent is lr / eps as large as any other; together they would drown in rounding."""
    options = {"lr": 0.01, "eps": 1e-8}
    plan = (StagePlan("one", optimizer="AdamW", options=options, steps=20),)
    recorded = train(tmp_path, plan, Embedded, every=1)
    slopes = {"all": {n: torch.ones_like(p) for n, p in recorded.model.named_parameters()}}
    exact = adjoint(recorded.rerun(), slopes)["all"].effect("one")
    cheap = adjoint(recorded.rerun(), slopes, products="finite-difference")["all"].effect("one")
    assert cheap == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_float32_finite_differences_follow_float64(tmp_path: Path, optimizer: str) -> None:
    name, options = OPTIMIZERS[optimizer]
    plan = tuple(
        StagePlan(i, optimizer=name, options=options, shift=n) for n, i in enumerate(("one", "two"))
    )
    wide, narrow = (
        train(tmp_path / "wide", plan),
        train(tmp_path / "narrow", plan, build_mlp32, every=1),
    )
    reference = adjoint(narrow.rerun(dtype=torch.float64), slopes_of(narrow))
    found = adjoint(narrow.rerun(), slopes_of(narrow), products="finite-difference")
    for stage in plan:
        for behavior, contributions in found.items():
            wanted = reference[behavior].effect(stage.id)
            assert contributions.effect(stage.id) == pytest.approx(wanted, rel=1e-2)
    assert adjoint(wide.rerun(), slopes_of(wide))["class 0"].effect("one") != 0


def test_costs_are_counted(tmp_path: Path) -> None:
    dense, sparse = train(tmp_path / "dense", every=1), train(tmp_path / "sparse", every=6)
    slopes = slopes_of(dense, 1)
    steps = 18
    for products, cost in (("exact", 3), ("finite-difference", 2)):
        found = adjoint(dense.rerun(), slopes, products=products)["class 0"]
        assert found.gradients == cost * steps
        more = adjoint(sparse.rerun(), slopes, products=products)["class 0"]
        assert 0 < more.gradients - found.gradients <= steps
        for stage, terms in found.steps.items():
            assert np.allclose(more.steps[stage], terms, rtol=1e-6)
    two = adjoint(dense.rerun(), slopes_of(dense, 2))
    assert sum(c.gradients for c in two.values()) == (1 + 2 * 2) * steps


def test_finite_differences_in_another_precision(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_mlp32, every=1)
    wide = recorded.rerun(dtype=torch.float64)
    exact = adjoint(wide, slopes_of(recorded, 1))["class 0"]
    cheap = adjoint(wide, slopes_of(recorded, 1), products="finite-difference")["class 0"]
    for stage in exact.steps:
        assert cheap.effect(stage) == pytest.approx(exact.effect(stage), rel=1e-5)


def most_held(recorded: Recorded) -> tuple[int, float]:
    """The most states alive at any step of a sweep, and its gradients."""
    counts: list[int] = []

    def count(*_: Any) -> None:
        counts.append(sum(type(o) is State for o in gc.get_objects()))

    rerun = recorded.rerun()
    gc.collect()
    before = sum(type(o) is State for o in gc.get_objects())
    found = adjoint(rerun, slopes_of(recorded, 1), visit=count)
    return max(counts) - before, found["class 0"].gradients


@pytest.mark.slow
def test_memory_grows_as_the_square_root_of_the_steps(tmp_path: Path) -> None:
    """A record of the two ends: 50, 200, 800 steps; at most two gradients more a step."""
    held = {}
    for steps in (50, 200, 800):
        plan = (StagePlan("one", steps=steps, options={"lr": 0.01, "momentum": 0.9}),)
        recorded = train(tmp_path / str(steps), plan, every=10**6)
        held[steps], gradients = most_held(recorded)
        assert held[steps] <= most_states(steps) + 4  # the step's own, its successor, the ends
        assert gradients <= (3 + 2) * steps
    exponent = np.polyfit(np.log(list(held)), np.log(list(held.values())), 1)[0]
    assert exponent < 0.55


def test_a_window_of_up_to_two_roots_is_run_again_once(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one", steps=40),), every=12)
    held, gradients = most_held(recorded)
    assert held <= 12 + 4
    assert gradients <= (3 + 1) * 40


def test_a_long_window_gives_what_a_dense_record_gives(tmp_path: Path) -> None:
    plan = (StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, steps=40),)
    dense = train(tmp_path / "dense", plan, build_dropped, every=1)
    ends = train(tmp_path / "ends", plan, build_dropped, every=100)
    slopes = slopes_of(dense, 1)
    one, other = (adjoint(r.rerun(), slopes)["class 0"] for r in (dense, ends))
    assert np.allclose(one.steps["one"], other.steps["one"], rtol=1e-9, atol=1e-15)


def test_every_step_is_told_and_the_model_keeps_its_mode(tmp_path: Path) -> None:
    recorded = train(tmp_path, every=3)
    told: list[int] = []
    rerun = recorded.rerun()
    rerun.model.eval()
    before = torch.get_rng_state()
    adjoint(rerun, slopes_of(recorded, 1), visit=told.append)
    assert told == [1] * 18
    assert not rerun.model.training
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_differentiated_is_refused_by_name(tmp_path: Path) -> None:
    normed = train(tmp_path / "norm", SGD3, build_normed)
    with pytest.raises(UnsupportedError, match="BatchNorm"):
        adjoint(normed.rerun(), slopes_of(normed, 1))
    other = train(
        tmp_path / "other", (StagePlan("one", optimizer="RMSprop", options={"lr": 0.01}),)
    )
    with pytest.raises(UnsupportedError, match="RMSprop"):
        adjoint(other.rerun(), slopes_of(other, 1))
    ends = train(tmp_path / "ends", SGD3, every="boundaries")
    with pytest.raises(EstimationError, match="without its steps"):
        adjoint(ends.rerun(), slopes_of(ends, 1))
    with pytest.raises(EstimationError, match="behaviour"):
        adjoint(ends.rerun(), {})


def test_parameters_that_steps_drop(tmp_path: Path) -> None:
    plan = (
        StagePlan("one"),
        StagePlan("two", shift=1, dropped=("one.bias",)),
        StagePlan("three", shift=2),
    )
    agree(train(tmp_path, plan, every=3))


@pytest.mark.parametrize("every", [1, 3])
def test_momentum_that_a_stage_between_does_without(tmp_path: Path, every: int) -> None:
    still = {"lr": 0.1, "momentum": 0.0}
    plan = (
        StagePlan("one"),
        StagePlan("two", shift=1, carry=True, options=still),
        StagePlan("three", shift=2, carry=True),
    )
    agree(train(tmp_path, plan, every=every))


@pytest.mark.parametrize("optimizer", ["Lion", "Muon"])
def test_the_adjoint_equals_the_tangent_under_other_optimizers(
    tmp_path: Path, optimizer: str
) -> None:
    """Muon takes matrices alone."""
    plan = tuple(
        StagePlan(
            name,
            optimizer=optimizer,
            options={"lr": 0.01, "weight_decay": 0.1},
            shift=shift,
            frozen=("one.bias", "two.bias"),
            lean=True,
            carry=carry,
        )
        for name, shift, carry in (("one", 0, False), ("two", 1, False), ("three", 3, True))
    )
    agree(train(tmp_path, plan, every=4))
