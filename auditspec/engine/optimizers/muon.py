"""torch.optim.Muon (Jordan et al. 2024): momentum whose update is orthogonalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from auditspec.engine.optimizers.interface import Options, Slots, UpdateRule


class Muon(UpdateRule):
    """b' = b + (1 - mu)(g - b), theta' = (1 - lr lambda) theta - lr r NS(d).

    d is b', or g + mu (b' - g) with Nesterov momentum. NS is a few Newton-Schulz iterations towards the
    orthogonal matrix nearest to d / |d|, in bfloat16 as torch makes them; r depends on the shape alone.
    Derivatives are those of the same iterations in the parameter's own precision: through bfloat16 they
    would be off by a tenth. Parameters are matrices, whose entries all move together.
    """

    name = "Muon"
    elementwise = False
    counts_steps = False

    def slots(self, h: Options) -> tuple[str, ...]:
        """The momentum."""
        return ("momentum_buffer",)

    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        """One step (see the class)."""
        b = torch.lerp(s["momentum_buffer"], g, 1 - h["momentum"])
        d = torch.lerp(g, b, h["momentum"]) if h["nesterov"] else b
        shrunk = theta * (1 - h["lr"] * h["weight_decay"])
        exact = orthogonalised(d, h)
        direction = exact + (orthogonalised(d.bfloat16(), h).to(d.dtype) - exact).detach()
        rate = h["lr"] * _ratio(h["adjust_lr_fn"], *theta.shape)
        return torch.add(shrunk, direction, alpha=-rate), {"momentum_buffer": b}

    def gradient_between(
        self, theta: Tensor, s: Slots, s_next: Slots, count: int, h: Options
    ) -> Tensor | None:
        """From the momentum, g = b + (b' - b) / (1 - mu)."""
        if h["momentum"] == 1:
            return None
        b, b_next = s["momentum_buffer"], s_next["momentum_buffer"]
        g: Tensor = b + (b_next - b) / (1 - h["momentum"])
        return g


def orthogonalised(d: Tensor, h: Options) -> Tensor:
    """The Newton-Schulz iterations of a matrix, X <- a X + (b X X^T + c (X X^T)^2) X, in its precision."""
    a, b, c = h["ns_coefficients"]
    tall = d.shape[0] > d.shape[1]
    x = d.T if tall else d
    x = x / x.norm().clamp(min=h["eps"])
    for _ in range(h["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _ratio(adjustment: str | None, rows: int, columns: int) -> float:
    """r, by the name of torch's adjustment of the learning rate to the shape."""
    if adjustment == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
