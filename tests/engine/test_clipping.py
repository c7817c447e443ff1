"""Clipping against torch's own, and its derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from auditspec.engine.clipping import clip, clip_rows, clip_tangent, factor


@pytest.mark.parametrize("limit", [0.5, 100.0], ids=["clips", "does not clip"])
def test_clipping_is_torchs_and_its_derivative_that_of_finite_differences(limit: float) -> None:
    torch.manual_seed(1)
    g = {"a": torch.randn(3).double(), "b": torch.randn(2, 2).double()}
    v = {n: torch.randn(2, *t.shape).double() for n, t in g.items()}

    def clipped(point: dict[str, Tensor]) -> dict[str, Tensor]:
        held = [nn.Parameter(torch.zeros_like(t)) for t in point.values()]
        for parameter, t in zip(held, point.values(), strict=True):
            parameter.grad = t.clone()
        nn.utils.clip_grad_norm_(held, limit)
        return {n: p.grad for n, p in zip(point, held, strict=True) if p.grad is not None}

    tangents, theirs, ours = clip_tangent(g, v, limit), clipped(g), clip(g, limit)
    for name in g:
        assert torch.equal(ours[name], theirs[name])
    eps = 1e-6
    for i in range(2):
        up = clipped({n: t + eps * v[n][i] for n, t in g.items()})
        down = clipped({n: t - eps * v[n][i] for n, t in g.items()})
        for name in g:
            slope = (up[name] - down[name]) / (2 * eps)
            assert torch.allclose(tangents[name][i], slope, rtol=1e-6, atol=1e-8)


def test_the_product_of_clipping_pulls_back_too() -> None:
    """Its Jacobian is symmetric: <w, C v> = <C w, v>."""
    torch.manual_seed(2)
    g, v, w = torch.randn(5).double(), torch.randn(1, 5).double(), torch.randn(1, 5).double()
    c_v, c_w = (clip_tangent({"g": g}, {"g": x}, 0.4)["g"] for x in (v, w))
    assert torch.allclose((w * c_v).sum(), (c_w * v).sum(), rtol=1e-12)
    leaf = g.clone().requires_grad_()
    norm = leaf.norm()
    (wanted,) = torch.autograd.grad(0.4 / (norm + 1e-6) * leaf, leaf, grad_outputs=w[0])
    assert torch.allclose(c_w[0], wanted, rtol=1e-12)


def test_a_loop_that_does_not_clip_leaves_gradients_and_tangents_alone() -> None:
    g, v = {"a": torch.randn(3)}, {"a": torch.randn(2, 3)}
    assert clip(g | {"b": None}, None).keys() == {"a"}
    assert torch.equal(clip(g, None)["a"], g["a"])
    assert torch.equal(clip_tangent(g, v, None)["a"], v["a"])
    assert clip({"a": None}, 0.1) == {}
    assert clip_tangent({}, {}, 0.1) == {}


def test_rows_are_clipped_each_by_its_own_norm() -> None:
    torch.manual_seed(3)
    rows = {
        "a": torch.randn(3, 4).double(),
        "b": torch.randn(3).double(),
        "c": torch.randn(3, 2, 2).double(),
    }
    rows["a"][2] *= 1e-3
    rows["b"][2] = 0
    rows["c"][2] = 0
    clipped = clip_rows(rows, 0.5)
    for i in range(3):
        alone = clip({n: r[i] for n, r in rows.items()}, 0.5)
        for name, g in alone.items():
            assert torch.allclose(clipped[name][i], g, rtol=1e-12)
    assert factor({n: r[2] for n, r in rows.items()}, 0.5) == 1
    assert clip_rows({}, 0.5) == {}
