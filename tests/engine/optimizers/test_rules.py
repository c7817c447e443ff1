"""Every update rule against the optimizer class that it stands for: one suite over all of them."""

from __future__ import annotations

import math
from typing import Any

import own_optimizers
import pytest
import torch
from torch import Tensor

from auditspec.engine.optimizers import UPDATE_RULES, find_rule
from auditspec.engine.optimizers.interface import LinearRule, Slots, UpdateRule

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 1.0}),
    ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.01, "momentum": 0.8, "maximize": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.02}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.05, "betas": (0.8, 0.95), "eps": 1e-4}),
    ("Adam", {"lr": 0.02, "maximize": True, "weight_decay": 0.05}),
    ("Adam", {"lr": 0.02, "decoupled_weight_decay": True, "weight_decay": 0.05}),
    ("AdamW", {"lr": 0.02}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    ("Lion", {"lr": 0.02}),
    ("Lion", {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.95)}),
    ("Muon", {"lr": 0.02}),
    ("Muon", {"lr": 0.02, "nesterov": False, "weight_decay": 0.3, "adjust_lr_fn": "original"}),
    ("Muon", {"lr": 0.02, "momentum": 0.8, "ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}),
]


def over(kind: type[UpdateRule], but: str = "") -> pytest.MarkDecorator:
    """The cases of the rules of a kind."""
    names = {rule.name for rule in UPDATE_RULES if issubclass(rule, kind) and rule.name != but}
    cases = [case for case in CASES if case[0] in names]
    return pytest.mark.parametrize(("name", "options"), cases, ids=lambda c: str(c))


every, linear = over(UpdateRule), over(LinearRule)


def class_of(name: str) -> Any:
    return getattr(torch.optim, name, None) or getattr(own_optimizers, name)


def rule_and_options(name: str, options: dict[str, Any]) -> tuple[UpdateRule, dict[str, Any]]:
    """The rule, and all hyperparameters of its class."""
    rule = find_rule(name)
    assert rule is not None
    return rule, class_of(name)([torch.zeros(2, 2)], **options).param_groups[0]


def a_state(
    rule: UpdateRule, h: Any, count: int, shape: tuple[int, ...]
) -> tuple[Tensor, Slots, Tensor]:
    """Some (theta, s, g); of its first entry no gradient was ever seen."""
    torch.manual_seed(4)
    theta, g = torch.randn(shape).double(), torch.randn(shape).double()
    s = {slot: count * torch.rand(shape).double() for slot in rule.slots(h)}
    for x in (g, *s.values()):
        x.view(-1)[0] = 0
    return theta, s, g


def test_every_rule_is_tried() -> None:
    assert {name for name, _ in CASES} == {rule.name for rule in UPDATE_RULES}


def loss(parameters: list[Tensor], k: int) -> Tensor:
    """A tied weight (used twice), an embedding whose rows 3 and 4 are never used, a row."""
    tied, embedding, plain = parameters
    row = embedding[[k % 3]]
    return (torch.tanh(row @ tied) @ tied.T * plain).sum() + (plain**2).sum() * 0.1


@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
@every
def test_fifty_steps_are_those_of_the_class(
    name: str, options: dict[str, Any], split: bool
) -> None:
    """And the gradient of each is found between the states around it, or said not to be there."""
    rule, _ = rule_and_options(name, options)
    torch.manual_seed(3)
    theirs = [torch.randn(4, 4).double(), torch.randn(5, 4).double(), torch.randn(1, 4).double()]
    for parameter in theirs:
        parameter.requires_grad_()
    groups = [{"params": theirs[:1], "lr": 0.03}, {"params": theirs[1:]}] if split else theirs
    optimizer = class_of(name)(groups, **options)
    ours = {p: p.detach().clone() for p in theirs}
    state: dict[Tensor, dict[str, Any]] = {p: {} for p in theirs}
    for k in range(50):
        optimizer.zero_grad()
        loss(theirs, k).backward()
        for h in optimizer.param_groups:
            h["lr"] *= 0.98  # a schedule
            for p in h["params"]:
                assert p.grad is not None
                g, theta = p.grad.clone(), ours[p]
                s, count = rule.read(state[p], theta, h)
                ours[p], s_next = rule.step(theta, s, g, count, h)
                state[p] = {**s_next, "step": count + 1} if rule.counts_steps else s_next
                between = rule.gradient_between(theta, s, s_next, count, h)
                known = name != "SGD" or (h["momentum"] != 0 and h["dampening"] != 1)
                assert (between is not None) == known
                if between is not None:
                    assert (between - g).norm() <= 1e-11 * (g.norm() + theta.norm())
        optimizer.step()
        for p in theirs:
            assert (ours[p] - p).norm() <= 1e-12 * p.norm()
            held, made = optimizer.state[p], state[p]
            for slot in rule.slots(optimizer.param_groups[0]):
                assert torch.allclose(made[slot], held[slot], rtol=1e-12, atol=1e-300)
            if any(v is not None for v in held.values()):
                assert rule.steps_made(held) == (k + 1 if rule.counts_steps else 1)
    assert theirs[1].grad is not None
    assert not theirs[1].grad[3:].any()  # the case that makes Adam's second moment zero is there


@pytest.mark.parametrize("count", [0, 5])
@over(UpdateRule, but="Muon")  # whose step is rounded to bfloat16 on the way (test_muon)
def test_the_derivative_is_that_of_small_changes(
    name: str, options: dict[str, Any], count: int
) -> None:
    """Central differences of the step, in float64."""
    rule, h = rule_and_options(name, options)
    theta, s, g = a_state(rule, h, count, (3, 4))
    for x in s.values():
        x += 0.5  # a second moment of zero has no slope on one of its sides
    torch.manual_seed(5)
    along = (
        torch.randn(2, 3, 4).double(),
        {slot: torch.randn(2, 3, 4).double() for slot in s},
        torch.randn(2, 3, 4).double(),
    )
    _, (theta_dot, s_dot) = rule.push_forward((theta, s, g), along, count, h)
    eps = 1e-6
    for i in range(2):

        def at(way: float, i: int = i) -> tuple[Tensor, Slots]:
            slots = {n: x + way * along[1][n][i] for n, x in s.items()}
            return rule.step(theta + way * along[0][i], slots, g + way * along[2][i], count, h)

        (up, s_up), (down, s_down) = at(eps), at(-eps)
        assert torch.allclose(theta_dot[i], (up - down) / (2 * eps), rtol=1e-6, atol=1e-8)
        for slot, rows in s_dot.items():
            slope = (s_up[slot] - s_down[slot]) / (2 * eps)
            assert torch.allclose(rows[i], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("moments", [True, False], ids=["moments", "no moments"])
@pytest.mark.parametrize("count", [0, 5])
@every
def test_the_pull_back_is_the_transpose_of_the_push_forward(
    name: str, options: dict[str, Any], count: int, moments: bool
) -> None:
    """<lambda, J delta> = <J^T lambda, delta>, of several directions at once, with zeros and without."""
    rule, h = rule_and_options(name, options)
    theta, s, g = a_state(rule, h, count, (3, 4))
    torch.manual_seed(6)
    n = 2
    along = (
        torch.randn(n, 3, 4).double(),
        {slot: torch.randn(n, 3, 4).double() for slot in s},
        torch.randn(n, 3, 4).double(),
    )
    made, (theta_dot, s_dot) = rule.push_forward((theta, s, g), along, count, h)
    again, pull = rule.pull_back(theta, s, g, count, h)
    assert torch.equal(made[0], again[0])
    assert made[1].keys() == again[1].keys() == s.keys()
    bar = torch.randn(n, 3, 4).double()
    s_bar = {slot: torch.randn(n, 3, 4).double() for slot in s if moments}
    theta_back, s_back, g_back = pull(bar, s_bar)
    left = (bar * theta_dot).flatten(1).sum(1)
    for slot, rows in s_bar.items():
        left += (rows * s_dot[slot]).flatten(1).sum(1)
    right = (theta_back * along[0] + g_back * along[2]).flatten(1).sum(1)
    for slot, rows in s_back.items():
        right += (rows * along[1][slot]).flatten(1).sum(1)
    assert torch.isfinite(left).all()
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@every
def test_an_elementwise_step_is_the_same_number_by_number(
    name: str, options: dict[str, Any]
) -> None:
    rule, h = rule_and_options(name, options)
    theta, s, g = a_state(rule, h, 3, (4, 4))
    whole, _ = rule.step(theta, s, g, 3, h)
    parts = [
        rule.step(theta[i : i + 1], {n: x[i : i + 1] for n, x in s.items()}, g[i : i + 1], 3, h)[0]
        for i in range(4)
    ]
    assert torch.equal(whole, torch.cat(parts)) == rule.elementwise


@every
def test_a_step_changes_none_of_its_arguments(name: str, options: dict[str, Any]) -> None:
    rule, h = rule_and_options(name, options)
    theta, s, g = a_state(rule, h, 3, (3, 4))
    before = [x.clone() for x in (theta, g, *s.values())]
    rule.step(theta, s, g, 3, h)
    assert all(torch.equal(x, y) for x, y in zip(before, (theta, g, *s.values()), strict=True))


@pytest.mark.parametrize("count", [0, 4])
@linear
def test_the_recurrence_is_the_steps_themselves_on_a_quadratic(
    name: str, options: dict[str, Any], count: int
) -> None:
    """Two runs under g = H theta, H diagonal, with P held: their difference goes by the scalars alone."""
    rule, h = rule_and_options(name, options)
    assert isinstance(rule, LinearRule)
    torch.manual_seed(7)
    curvature = torch.rand(6).double() + 0.5
    delta, nu = 1e-7 * torch.randn(6).double(), 1e-7 * torch.randn(6).double()
    theta = torch.zeros(6).double()
    s = {slot: torch.zeros(6).double() for slot in rule.slots(h)}
    if "exp_avg_sq" in s:
        # so large that the steps leave it as it is, up to its known decay
        s["exp_avg_sq"] = (1e4 + torch.rand(6).double()) * (1 - h["betas"][1] ** max(count, 1))
    if count == 0 or rule.first_moment not in s:
        nu = torch.zeros(6).double()
    first = {rule.first_moment: nu} if rule.first_moment in s else {}
    moved = (theta + delta, s | first)
    sign = -1.0 if h["maximize"] else 1.0
    for k in range(3):
        t = count + k
        g = sign * curvature * delta + rule.coupled_decay(h) * delta
        c = rule.coefficients(t, h)
        state = dict(moved[1]) | {"step": torch.tensor(float(max(t, 1)))}
        p = rule.preconditioner(state, h)
        assert p is not None
        x, slots = moved
        moved = rule.step(x, slots, curvature * x, t, h)
        if "exp_avg_sq" in s:  # P of this very step
            p = rule.preconditioner(moved[1] | {"step": torch.tensor(float(t + 1))}, h)
            assert p is not None
        nu = c.a * nu + c.b * g
        delta = (1 - c.w) * delta - p * (c.p * g + c.q * nu)
        assert torch.allclose(moved[0], delta, rtol=1e-9, atol=1e-18)
        if rule.first_moment in moved[1]:
            assert torch.allclose(moved[1][rule.first_moment], nu, rtol=1e-9, atol=1e-18)


@linear
def test_a_preconditioner_is_known_from_the_first_step_on(
    name: str, options: dict[str, Any]
) -> None:
    rule, h = rule_and_options(name, options)
    assert isinstance(rule, LinearRule)
    assert (rule.preconditioner({}, h) is None) == ("exp_avg_sq" in rule.slots(h))
    assert math.isfinite(rule.coefficients(0, h).limit)
    assert rule.first_moment in rule.slots(h | {"momentum": 0.9})


@every
def test_what_is_not_there_yet_is_zero(name: str, options: dict[str, Any]) -> None:
    rule, h = rule_and_options(name, options)
    theta = torch.ones(2, 2)
    for state in ({}, dict.fromkeys(rule.slots(h))):
        s, count = rule.read(state, theta, h)
        assert count == 0
        assert s.keys() == set(rule.slots(h))
        assert not any(x.any() for x in s.values())
