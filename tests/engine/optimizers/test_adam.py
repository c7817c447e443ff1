"""Adam where its second moment is zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auditspec.engine.optimizers.adam import Adam, AdamW, safe_sqrt


@pytest.mark.parametrize("rule", [Adam(), AdamW()], ids=lambda rule: rule.name)
def test_derivative_where_the_second_moment_is_zero(rule: Adam) -> None:
    """At v = 0 the step moves with m_hat / eps alone, as a one-sided difference confirms."""
    h = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.0, "maximize": False}
    zero = torch.zeros(1).double()
    s = {"exp_avg": zero, "exp_avg_sq": zero}

    def move(g: Tensor) -> Tensor:
        return rule.step(zero, s, g, 0, h)[0]

    rows = dict.fromkeys(s, zero[None])
    _, (tangent, _) = rule.push_forward((zero, s, zero), (zero[None], rows, 1 + zero[None]), 0, h)
    assert float(tangent) == pytest.approx(-0.1 / 1e-3)
    assert float(move(zero + 1e-9)) / 1e-9 == pytest.approx(float(tangent), rel=1e-5)
    _, pull = rule.pull_back(zero, s, zero, 0, h)
    assert float(pull(1 + zero[None], {})[2]) == pytest.approx(-0.1 / 1e-3)


def test_safe_sqrt_is_the_square_root() -> None:
    v = torch.tensor([0.0, 1e-30, 4.0]).double()
    assert torch.equal(safe_sqrt(v), v.sqrt())
    _, slope = torch.func.jvp(safe_sqrt, (v,), (torch.ones(3).double(),))
    assert slope[0] == 0
    assert slope[2] == pytest.approx(0.25)
