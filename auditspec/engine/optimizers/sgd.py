"""torch.optim.SGD (Sutskever et al. 2013)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from auditspec.engine.optimizers.interface import Coefficients, LinearRule, Options, Slots


class Sgd(LinearRule):
    """b' = mu b + (1 - tau) g, theta' = theta - lr d.

    At a parameter's first step b' = g (no dampening), as torch does. d is g without momentum, b' with
    momentum, g + mu b' with Nesterov momentum; g includes the weight decay. Whether there is a momentum
    buffer tells whether a step was made; how many does not matter.
    """

    name = "SGD"
    elementwise = True
    counts_steps = False
    first_moment = "momentum_buffer"

    def slots(self, h: Options) -> tuple[str, ...]:
        """The momentum buffer, where there is momentum."""
        return () if h["momentum"] == 0 else (self.first_moment,)

    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        """One step (see the class)."""
        if h["maximize"]:
            g = -g
        g = g + h["weight_decay"] * theta
        mu = h["momentum"]
        if mu == 0:
            return theta - h["lr"] * g, s
        b = g if count == 0 else mu * s[self.first_moment] + (1 - h["dampening"]) * g
        d = g + mu * b if h["nesterov"] else b
        return theta - h["lr"] * d, {self.first_moment: b}

    def gradient_between(
        self, theta: Tensor, s: Slots, s_next: Slots, count: int, h: Options
    ) -> Tensor | None:
        """From the momentum, g = (b' - mu b) / (1 - tau), less the weight decay; None without momentum."""
        if h["momentum"] == 0 or h["dampening"] == 1:
            return None
        b, b_next = s[self.first_moment], s_next[self.first_moment]
        g = b_next if count == 0 else (b_next - h["momentum"] * b) / (1 - h["dampening"])
        if h["weight_decay"]:
            g = g - h["weight_decay"] * theta
        return -g if h["maximize"] else g

    def coefficients(self, count: int, h: Options) -> Coefficients:
        """Of b' and theta' as the step makes them."""
        lr, mu = float(h["lr"]), h["momentum"]
        if mu == 0:
            return Coefficients(a=0.0, b=0.0, w=0.0, p=lr, q=0.0)
        a, b = (0.0, 1.0) if count == 0 else (mu, 1 - h["dampening"])
        p, q = (lr, lr * mu) if h["nesterov"] else (0.0, lr)
        return Coefficients(a, b, 0.0, p, q)

    def coupled_decay(self, h: Options) -> float:
        """All of it."""
        return float(h["weight_decay"])

    def preconditioner(self, state: Mapping[str, Any], h: Options) -> float:
        """1, always."""
        return 1.0
