"""The scalars of the recurrence against the derivative of the very update maps, and their limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from auditspec.estimator.krylov.recurrence import (
    coefficients,
    coupled_decay,
    preconditioner,
    propagate,
)
from auditspec.estimator.steps import sgd, update_map

BASE = {"lr": 0.1, "weight_decay": 0.2, "maximize": False}
SGD: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "momentum": {"momentum": 0.9, "dampening": 0.3, "nesterov": False},
    "nesterov": {"momentum": 0.9, "dampening": 0.0, "nesterov": True},
}


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
@pytest.mark.parametrize("count", [0, 3])
def test_sgd_is_the_derivative_of_its_update_map(options: dict[str, Any], count: int) -> None:
    h = BASE | options
    delta, nu, g_dot = (torch.randn(5).double() for _ in range(3))
    zero = torch.zeros(5).double()
    theta, s = sgd(delta, {"momentum_buffer": nu if count else zero}, g_dot, count, h)
    c = coefficients("SGD", h, count)
    g = g_dot + coupled_decay("SGD", h) * delta
    moved = c.a * (nu if count else zero) + c.b * g
    assert torch.allclose(theta, (1 - c.w) * delta - c.p * g - c.q * moved, rtol=1e-12)
    if h["momentum"]:
        assert torch.allclose(s["momentum_buffer"], moved, rtol=1e-12)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_is_the_derivative_of_its_update_map_in_the_first_moment(name: str) -> None:
    """With g = 0 at the point, the second moment does not move, and it is beta2 v after the step."""
    h = (
        BASE
        | {"betas": (0.9, 0.99), "eps": 1e-3}
        | ({"weight_decay": 0.0} if name == "Adam" else {})
    )
    theta, delta, nu, g_dot = (torch.randn(5).double() for _ in range(4))
    v, m, count = torch.rand(5).double(), torch.zeros(5).double(), 4

    def step(theta: Any, m: Any, g: Any) -> Any:
        found, s = update_map(name, h)(theta, {"exp_avg": m, "exp_avg_sq": v}, g, count, h)
        return found, s["exp_avg"]

    at = (theta, m, torch.zeros(5).double())
    wanted = torch.func.jvp(step, at, (delta, nu, g_dot))[1]
    c = coefficients(name, h, count)
    p = preconditioner(name, h, {"exp_avg_sq": 0.99 * v, "step": torch.tensor(5.0)})
    moved = c.a * nu + c.b * g_dot
    assert torch.allclose(wanted[1], moved, rtol=1e-12)
    assert torch.allclose(wanted[0], (1 - c.w) * delta - p * c.q * moved, rtol=1e-12)


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_the_limit_is_where_repeating_the_step_begins_to_grow(options: dict[str, Any]) -> None:
    c = coefficients("SGD", BASE | options, count=1)
    for factor, grows in ((0.99, False), (1.01, True)):
        value = torch.tensor([c.limit * factor]).double()
        y, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        end, _ = propagate(value, [(c,)] * 4000, [], y, zero, zero, stable=False)
        assert (abs(float(end)) > 1) == grows
        held, _ = propagate(value, [(c,)] * 4000, [], y, zero, zero, stable=True)
        assert abs(float(held)) < 1


def test_a_step_without_a_rate_has_no_limit() -> None:
    assert coefficients("SGD", BASE | SGD["plain"] | {"lr": 0.0}, 1).limit == math.inf
