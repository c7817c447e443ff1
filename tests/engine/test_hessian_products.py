"""Hessian-vector products, exact and by finite differences, and the derivative of clipping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from estimates import adjoint, sweep
from torch import Tensor, nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    cross_entropy,
    load_batch,
    train,
)

from auditspec.engine.hessian_products import HessianProducts, hessian_vector
from auditspec.engine.interface import StepGradient
from auditspec.errors import UnsupportedError


def test_hessian_vector_equals_the_full_hessian() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3).double(), torch.randn(2).double()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(a).sum() ** 2 * torch.cos(b).sum() + (a**3).sum()

    leaves = {"a": a.clone().requires_grad_(), "b": b.clone().requires_grad_()}
    value = loss(leaves["a"], leaves["b"])
    gradients = dict(
        zip(
            leaves,
            torch.autograd.grad(value, list(leaves.values()), create_graph=True),
            strict=True,
        )
    )
    directions = {"a": torch.randn(4, 3).double(), "b": torch.randn(4, 2).double()}
    found = hessian_vector(gradients, leaves, directions)
    full = torch.autograd.functional.hessian(loss, (a, b))
    for i in range(4):
        wanted = full[0][0] @ directions["a"][i] + full[0][1] @ directions["b"][i]
        assert torch.allclose(found["a"][i], wanted, rtol=1e-12)


def test_what_the_loss_does_not_reach_has_a_zero_product() -> None:
    p, q = (torch.ones(2).double().requires_grad_() for _ in range(2))
    (g,) = torch.autograd.grad((p * 3).sum(), p, create_graph=True)
    found = hessian_vector(
        {"p": g, "q": None}, {"p": p, "q": q}, {"p": torch.ones(1, 2), "q": torch.ones(1, 2)}
    )
    assert not found["p"].any()
    assert not found["q"].any()


def first_moment(hessian: HessianProducts, recorded: Recorded) -> StepGradient:
    """The record's first step, with its gradient, at theta_0."""
    rerun = hessian.engine
    stage = recorded.trajectory.stages[0]
    with torch.no_grad():
        for name, parameter in rerun.model.named_parameters():
            parameter.copy_(stage.first.parameters[name])
    return hessian.step_gradient(stage, stage.steps[0], rerun.optimizer(stage))


@pytest.mark.parametrize("build", [build_mlp, build_dropped])
def test_finite_differences_equal_exact_products(tmp_path: Path, build) -> None:
    """With dropout: both evaluations draw the record's random numbers. theta stays as it was."""
    recorded = train(tmp_path, (StagePlan("one", microbatches=2),), build)
    found = {}
    for kind in ("exact", "finite-difference"):
        rerun = recorded.rerun()
        with rerun.training():
            hessian = HessianProducts(rerun, kind)
            step_gradient = first_moment(hessian, recorded)
            torch.manual_seed(5)
            w = {n: torch.randn(2, *p.shape).double() for n, p in step_gradient.parameters.items()}
            found[kind] = hessian(step_gradient, w)
            per_direction = 2 if kind == "exact" else 1
            assert hessian.gradients == 2 * 2 * per_direction  # two microbatches, two directions
            for name, parameter in rerun.model.named_parameters():
                assert torch.equal(parameter, recorded.trajectory.stages[0].first.parameters[name])
    for name, exact in found["exact"].items():
        error = (found["finite-difference"][name] - exact).norm() / exact.norm()
        assert error < 1e-6


@pytest.mark.parametrize("length", [1.0, 1e12], ids=["usual", "long"])
def test_a_long_direction_along_unused_numbers_spoils_nothing(
    tmp_path: Path, length: float
) -> None:
    """Feature x3 is always 0: no gradient reaches its weights, and H is 0 there, exactly."""
    recorded = train(tmp_path, (StagePlan("one"),))
    products = {}
    for kind in ("exact", "finite-difference"):
        rerun = recorded.rerun()
        with rerun.training():
            hessian = HessianProducts(rerun, kind)
            step_gradient = first_moment(hessian, recorded)
            torch.manual_seed(5)
            w = {n: torch.randn(1, *p.shape).double() for n, p in step_gradient.parameters.items()}
            w["one.weight"][:, :, 3] *= length
            products[kind] = hessian(step_gradient, w)
    assert hessian.gradients == (1 if length == 1 else 3)
    for name, exact in products["exact"].items():
        assert (products["finite-difference"][name] - exact).norm() < 1e-6 * exact.norm()


def test_a_zero_direction_costs_nothing(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one"),))
    rerun = recorded.rerun()
    with rerun.training():
        hessian = HessianProducts(rerun, "finite-difference")
        step_gradient = first_moment(hessian, recorded)
        w = {n: torch.zeros(1, *p.shape).double() for n, p in step_gradient.parameters.items()}
        assert not any(product.any() for product in hessian(step_gradient, w).values())
        assert hessian.gradients == 0


def test_finite_differences_in_bfloat16_are_refused_by_name(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one"),))
    with pytest.raises(UnsupportedError, match="bfloat16") as error:
        HessianProducts(recorded.rerun(dtype=torch.bfloat16), "finite-difference")
    assert "exact" in error.value.remedy
    HessianProducts(recorded.rerun(dtype=torch.bfloat16), "exact")


class Attending(nn.Module):
    """Fused attention over the four features."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(1, 24), nn.Linear(32, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, :, None])[:, None].chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(torch.tanh(mixed.flatten(1)))


def build_attending() -> nn.Module:
    return Attending().double()


def test_products_go_through_fused_attention_by_the_math_kernel(tmp_path: Path) -> None:
    """The trap: on a CPU torch's fused kernel has no second derivative."""
    plan = (StagePlan("one"), StagePlan("two", shift=1))
    recorded = train(tmp_path, plan, build_attending, every=2)
    batch = load_batch(recorded.datasets["data"], range(8))
    leaves = dict(recorded.model.named_parameters())
    loss = cross_entropy(recorded.model, batch)
    first = torch.autograd.grad(loss, [*leaves.values()], create_graph=True)
    w = {n: torch.ones(1, *p.shape).double() for n, p in leaves.items()}
    with pytest.raises(UnsupportedError, match="scaled_dot_product"):
        hessian_vector(dict(zip(leaves, first, strict=True)), leaves, w)
    rerun = recorded.rerun()
    slopes = {"sum": {n: torch.ones_like(p) for n, p in recorded.model.named_parameters()}}
    final = recorded.trajectory.stages[-1].last
    fused = adjoint(rerun, slopes, products="finite-difference")[
        "sum"
    ]  # by the fused kernel itself
    found = adjoint(rerun, slopes)["sum"]
    tangents = sweep(rerun, final, {"one": "first-order"})
    quick = sweep(rerun, final, {"one": "first-order"}, products="finite-difference")
    assert quick["one"].gradients < tangents["one"].gradients
    wanted = -sum(float(d.sum()) for d in tangents["one"].delta.values())
    assert found.effect("one") == pytest.approx(wanted, rel=1e-9)
    assert fused.effect("one") == pytest.approx(wanted, rel=1e-4)
    assert -sum(float(d.sum()) for d in quick["one"].delta.values()) == pytest.approx(
        wanted, rel=1e-4
    )
    assert torch.backends.cuda.flash_sdp_enabled()  # the kernel's choice was put back


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        return g * 2


class OnlyFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return Once.apply(torch.tanh(self.map(x)))


def build_only_first() -> nn.Module:
    return OnlyFirst().double()


def test_other_operations_without_a_second_derivative_are_named(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one"),), build_only_first)
    slopes = {"sum": {n: torch.ones_like(p) for n, p in recorded.model.named_parameters()}}
    with pytest.raises(UnsupportedError, match="second derivative") as error:
        adjoint(recorded.rerun(), slopes)
    assert "finite-difference" in error.value.remedy
    assert adjoint(recorded.rerun(), slopes, products="finite-difference")["sum"].effect("one")
