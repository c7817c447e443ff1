"""The update maps against torch.optim itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from auditspec.errors import UnsupportedError
from auditspec.estimator.steps import (
    gradient_between,
    pull_back,
    safe_sqrt,
    slopes,
    slots,
    step_made,
    update_map,
)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "maximize": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.02}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-4}),
    ("Adam", {"lr": 0.02, "maximize": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.02, "decoupled_weight_decay": True, "weight_decay": 0.05}),
    ("AdamW", {"lr": 0.02}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
]


def one_hot_loss(parameters: list[Tensor], k: int) -> Tensor:
    """A tied weight (used twice), an embedding whose rows 3 and 4 are never used, a plain weight."""
    tied, embedding, plain = parameters
    row = embedding[[k % 3]]
    return (torch.tanh(row @ tied) @ tied.T * plain).sum() + (plain**2).sum() * 0.1


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda c: str(c))
@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
def test_fifty_steps_equal_torch_optim(name: str, options: dict[str, Any], split: bool) -> None:
    torch.manual_seed(3)
    theirs = [torch.randn(4, 4).double(), torch.randn(5, 4).double(), torch.randn(4).double()]
    for parameter in theirs:
        parameter.requires_grad_()
    ours = [p.detach().clone() for p in theirs]
    groups = [{"params": theirs[:1], "lr": 0.03}, {"params": theirs[1:]}] if split else theirs
    optimizer = getattr(torch.optim, name)(groups, **options)
    state: dict[int, dict[str, Any]] = {i: {} for i in range(3)}
    for k in range(50):
        for group in optimizer.param_groups:
            group["lr"] *= 0.98  # a schedule
        optimizer.zero_grad()
        one_hot_loss(theirs, k).backward()
        gradients = [p.grad.clone() for p in theirs]
        for group in optimizer.param_groups:
            held = {id(p) for p in group["params"]}
            for i, parameter in enumerate(theirs):
                if id(parameter) in held:
                    s, count = slots(name, group, state[i], ours[i])
                    theta, before = ours[i], s
                    ours[i], s = update_map(name, group)(theta, s, gradients[i], count, group)
                    state[i] = {**s, "step": count + 1}
                    read_off = gradient_between(name, group, theta, before, s, count)
                    assert (read_off is None) == (name == "SGD" and group["momentum"] == 0)
                    if read_off is not None:
                        off = (read_off - gradients[i]).norm()
                        assert off <= 1e-11 * (gradients[i].norm() + theta.norm())
        optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine - other).norm() <= 1e-12 * other.norm()
    unused = theirs[1].grad[3:]
    assert not unused.any()  # the case that makes Adam's second moment zero is really there


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_derivative_where_the_second_moment_is_zero(name: str) -> None:
    """At v = 0 the step moves with m_hat / eps alone, as a one-sided difference confirms."""
    h = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.0, "maximize": False}
    step = update_map(name, h)
    zero = torch.zeros(1).double()
    s = {"exp_avg": zero, "exp_avg_sq": zero}

    def move(g: Tensor) -> Tensor:
        return step(zero, s, g, 0, h)[0]

    _, tangent = torch.func.jvp(move, (zero,), (torch.ones(1).double(),))
    assert torch.isfinite(tangent).all()
    assert float(tangent) == pytest.approx(-0.1 / 1e-3)
    assert float(move(zero + 1e-9)) / 1e-9 == pytest.approx(float(tangent), rel=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda c: str(c))
@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("later", [True, False], ids=["moments", "no moments"])
def test_the_pullback_equals_autograd_of_the_update_map(
    name: str, options: dict[str, Any], count: int, later: bool
) -> None:
    torch.manual_seed(4)
    h = getattr(torch.optim, name)([torch.zeros(1)], **options).param_groups[0]
    theta, g = torch.randn(7).double(), torch.randn(7).double()
    g[0] = 0.0
    s = {
        slot: torch.rand(7).double() if count else torch.zeros(7).double()
        for slot in slots(name, h, {}, theta)[0]
    }
    if "exp_avg" in s:  # nothing was ever seen of this entry: v' = 0 where the decay is decoupled
        s["exp_avg"][0] = s["exp_avg_sq"][0] = 0.0
    held = {"theta": theta, "g": g, **s}
    leaves = {n: t.clone().requires_grad_() for n, t in held.items()}
    theta_next, s_next = update_map(name, h)(
        leaves["theta"], {n: leaves[n] for n in s}, leaves["g"], count, h
    )
    moved, made = step_made(name, theta, s, g, count, h)
    assert torch.allclose(moved, theta_next.detach(), rtol=1e-13)
    for slot in s:
        assert torch.allclose(made[slot], s_next[slot].detach(), rtol=1e-13)
    two = {slot: torch.stack([torch.ones_like(x), x]) for slot, x in made.items()}
    slope = {slot: rows[1] for slot, rows in slopes(name, two, [7, count], h).items()}
    theta_bar = torch.randn(3, 7).double()
    s_bar = {slot: torch.randn(3, 7).double() for slot in s} if later else {}
    found_theta, found_s, found_g = pull_back(name, slope, theta, g, count, h, theta_bar, s_bar)
    found = {"theta": found_theta, "g": found_g, **found_s}
    outputs = [theta_next, *(s_next[slot] for slot in s_bar)]
    for i in range(3):
        wanted = torch.autograd.grad(
            outputs,
            list(leaves.values()),
            grad_outputs=[theta_bar[i], *(s_bar[slot][i] for slot in s_bar)],
            retain_graph=True,
            allow_unused=True,
        )
        for leaf, value in zip(leaves, wanted, strict=True):
            expected = torch.zeros(7).double() if value is None else value
            assert torch.allclose(found[leaf][i], expected, rtol=1e-12, atol=1e-14), leaf


def test_the_pullback_refuses_what_has_no_map() -> None:
    with pytest.raises(UnsupportedError, match="RMSprop"):
        pull_back("RMSprop", {}, NONE, NONE, 0, {}, NONE, {})


NONE = torch.zeros(1)


def test_safe_sqrt_is_the_square_root() -> None:
    v = torch.tensor([0.0, 1e-30, 4.0]).double()
    assert torch.equal(safe_sqrt(v), v.sqrt())
    _, slope = torch.func.jvp(safe_sqrt, (v,), (torch.ones(3).double(),))
    assert slope[0] == 0
    assert slope[2] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("RMSprop", {}, "derivatives of RMSprop"),
        ("Adam", {"amsgrad": True}, "amsgrad"),
        ("AdamW", {"amsgrad": True}, "amsgrad"),
    ],
)
def test_what_has_no_map_is_refused_by_name(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as error:
        update_map(name, options)
    assert "replay" in error.value.remedy
