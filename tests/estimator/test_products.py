"""Hessian-vector products and the tangent of clipping."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from auditspec.estimator.products import clip_tangent, hessian_vector


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


@pytest.mark.parametrize("limit", [0.5, 100.0], ids=["clips", "does not clip"])
def test_clip_tangent_equals_torch_and_finite_differences(limit: float) -> None:
    torch.manual_seed(1)
    g = {"a": torch.randn(3).double(), "b": torch.randn(2, 2).double()}
    v = {n: torch.randn(2, *t.shape).double() for n, t in g.items()}

    def clipped(point: dict[str, Tensor]) -> dict[str, Tensor]:
        held = [nn.Parameter(torch.zeros_like(t)) for t in point.values()]
        for parameter, t in zip(held, point.values(), strict=True):
            parameter.grad = t.clone()
        nn.utils.clip_grad_norm_(held, limit)
        return {n: p.grad for n, p in zip(point, held, strict=True) if p.grad is not None}

    values, tangents = clip_tangent(g, v, limit)
    theirs = clipped(g)
    for name in g:
        assert torch.allclose(values[name], theirs[name], rtol=1e-12)
    eps = 1e-6
    for i in range(2):
        up = clipped({n: t + eps * v[n][i] for n, t in g.items()})
        down = clipped({n: t - eps * v[n][i] for n, t in g.items()})
        for name in g:
            slope = (up[name] - down[name]) / (2 * eps)
            assert torch.allclose(tangents[name][i], slope, rtol=1e-6, atol=1e-8)
