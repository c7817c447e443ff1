"""torch.optim.Adam (Kingma & Ba 2015) and torch.optim.AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from auditspec.engine.optimizers.interface import Coefficients, LinearRule, Options, Slots


class Adam(LinearRule):
    """m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g^2, with t = count + 1.

    theta' = theta - lr (m' / (1 - beta1^t)) / (sqrt(v') / sqrt(1 - beta2^t) + eps)

    The weight decay is added to g, or shrinks theta by 1 - lr lambda where it is decoupled.
    """

    name = "Adam"
    elementwise = True
    counts_steps = True
    first_moment = "exp_avg"

    def decoupled(self, h: Options) -> bool:
        """Whether the weight decay shrinks theta and leaves the gradient alone."""
        return bool(h.get("decoupled_weight_decay"))

    def unsupported_option(self, h: Options) -> str:
        """amsgrad, whose maximum of second moments is no part of the step here."""
        return "amsgrad" if h.get("amsgrad") else ""

    def slots(self, h: Options) -> tuple[str, ...]:
        """The two moments."""
        return (self.first_moment, "exp_avg_sq")

    def steps_made(self, state: Mapping[str, Any]) -> int:
        """The parameter's own counter."""
        return int(state.get("step", 0))

    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        """One step (see the class)."""
        if h["maximize"]:
            g = -g
        if self.decoupled(h):
            theta = theta * (1 - h["lr"] * h["weight_decay"])
        else:
            g = g + h["weight_decay"] * theta
        beta1, beta2 = h["betas"]
        t = count + 1
        m = beta1 * s["exp_avg"] + (1 - beta1) * g
        v = beta2 * s["exp_avg_sq"] + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        root_v_hat = safe_sqrt(v) / (1 - beta2**t) ** 0.5
        return theta - h["lr"] * m_hat / (root_v_hat + h["eps"]), {"exp_avg": m, "exp_avg_sq": v}

    def gradient_between(
        self, theta: Tensor, s: Slots, s_next: Slots, count: int, h: Options
    ) -> Tensor | None:
        """From the first moment, g = m + (m' - m) / (1 - beta1), less a coupled weight decay.

        So torch writes m', a lerp; solved from beta1 m, in float32 a bias along m would be left.
        """
        m, m_next = s[self.first_moment], s_next[self.first_moment]
        g: Tensor = m + (m_next - m) / (1 - h["betas"][0])
        if decay := self.coupled_decay(h):
            g = g - decay * theta
        return -g if h["maximize"] else g

    def coefficients(self, count: int, h: Options) -> Coefficients:
        """Of m' and theta' with the second moment held."""
        lr, beta1 = float(h["lr"]), h["betas"][0]
        w = lr * h["weight_decay"] if self.decoupled(h) else 0.0
        return Coefficients(a=beta1, b=1 - beta1, w=w, p=0.0, q=lr / (1 - beta1 ** (count + 1)))

    def coupled_decay(self, h: Options) -> float:
        """All of it, unless it is decoupled."""
        return 0.0 if self.decoupled(h) else float(h["weight_decay"])

    def preconditioner(self, state: Mapping[str, Any], h: Options) -> Tensor | None:
        """1 / (sqrt(v_hat) + eps)."""
        v = state.get("exp_avg_sq")
        if v is None:
            return None
        scale: Tensor = 1 / ((v / (1 - h["betas"][1] ** self.steps_made(state))).sqrt() + h["eps"])
        return scale


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    name = "AdamW"

    def decoupled(self, h: Options) -> bool:
        """Always."""
        return True


def safe_sqrt(v: Tensor) -> Tensor:
    """Square root whose derivative at 0 is defined as 0.

    Where v = 0 every gradient so far was 0, hence m = 0 too, and the step's derivative in any
    direction is that of m_hat / eps alone: the root's own derivative is multiplied by m_hat = 0.
    So 0 is the right value, and it keeps infinity times zero out of tangents (constant pixels,
    embedding rows that no example uses).
    """
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, torch.ones_like(v)).sqrt(), 0 * v)
