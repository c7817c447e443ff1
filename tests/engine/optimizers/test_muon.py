"""Muon's derivative, that of its iterations in float64, and the rate of each shape."""

from __future__ import annotations

import pytest
import torch

from auditspec.engine.optimizers.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=["tall", "wide"])
def test_the_derivative_is_that_of_the_iterations_in_float64(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rule, h = Muon(), torch.optim.Muon([torch.zeros(2, 2)], lr=1.0).param_groups[0]
    theta, b, g, direction = (torch.randn(shape).double() for _ in range(4))
    zero = torch.zeros(1, *shape).double()
    along = (zero, {"momentum_buffer": direction[None]}, zero)
    _, (theta_dot, s_dot) = rule.push_forward((theta, {"momentum_buffer": b}, g), along, 1, h)
    assert torch.allclose(s_dot["momentum_buffer"][0], h["momentum"] * direction)

    def moved(eps: float) -> torch.Tensor:
        held = torch.lerp(b + eps * direction, g, 1 - h["momentum"])
        return orthogonalised(torch.lerp(g, held, h["momentum"]), h)

    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert torch.allclose(theta_dot[0], -(max(1, shape[0] / shape[1]) ** 0.5) * slope, rtol=1e-6)


def test_the_learning_rate_is_adjusted_to_the_shape_as_torch_does() -> None:
    for adjustment in (None, "original", "match_rms_adamw"):
        for shape in ((8, 2), (2, 8)):
            torch.manual_seed(1)
            parameter = torch.nn.Parameter(torch.zeros(shape).double())
            optimizer = torch.optim.Muon([parameter], lr=0.1, adjust_lr_fn=adjustment)
            g = torch.randn(shape).double()
            parameter.grad = g.clone()
            optimizer.step()
            s = {"momentum_buffer": torch.zeros(shape).double()}
            ours, _ = Muon().step(torch.zeros(shape).double(), s, g, 0, optimizer.param_groups[0])
            assert torch.allclose(ours, parameter.detach(), rtol=1e-12, atol=0)
