"""Steps of a linear rule on eigenvalues, and where repeating one begins to grow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from auditspec.engine.optimizers.sgd import Sgd
from auditspec.estimator.krylov.recurrence import propagate

BASE = {"lr": 0.1, "weight_decay": 0.2, "maximize": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "momentum": {"momentum": 0.9, "dampening": 0.3, "nesterov": False},
    "nesterov": {"momentum": 0.9, "dampening": 0.0, "nesterov": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_limit_is_where_repeating_the_step_begins_to_grow(options: dict[str, Any]) -> None:
    c = Sgd().coefficients(1, BASE | options)
    for factor, grows in ((0.99, False), (1.01, True)):
        value = torch.tensor([c.limit * factor]).double()
        y, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        end, _ = propagate(value, [(c,)] * 4000, [], y, zero, zero, stable=False)
        assert (abs(float(end)) > 1) == grows
        damped, _ = propagate(value, [(c,)] * 4000, [], y, zero, zero, stable=True)
        assert abs(float(damped)) < 1


def test_a_step_without_a_rate_has_no_limit() -> None:
    assert Sgd().coefficients(1, BASE | OPTIONS["plain"] | {"lr": 0.0}).limit == math.inf
