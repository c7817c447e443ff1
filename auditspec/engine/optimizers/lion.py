"""Lion (Chen et al. 2023, algorithm 2), a class of the training code."""

from __future__ import annotations

from torch import Tensor

from auditspec.engine.optimizers.interface import Options, Slots, UpdateRule


class Lion(UpdateRule):
    """theta' = (1 - lr lambda) theta - lr sign(beta1 m + (1 - beta1) g), m' = beta2 m + (1 - beta2) g.

    The sign's derivative is 0 wherever it has one: a displacement reaches later weights through the
    weight decay alone, until it is large enough to turn signs, which no derivative sees.
    """

    name = "Lion"
    elementwise = True
    counts_steps = False

    def slots(self, h: Options) -> tuple[str, ...]:
        """The momentum."""
        return ("exp_avg",)

    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        """One step (see the class)."""
        if h.get("maximize"):
            g = -g
        beta1, beta2 = h["betas"]
        m = s["exp_avg"]
        direction = (beta1 * m + (1 - beta1) * g).sign()
        shrunk = theta * (1 - h["lr"] * h.get("weight_decay", 0.0))
        return shrunk - h["lr"] * direction, {"exp_avg": beta2 * m + (1 - beta2) * g}

    def gradient_between(
        self, theta: Tensor, s: Slots, s_next: Slots, count: int, h: Options
    ) -> Tensor | None:
        """From the momentum, g = (m' - beta2 m) / (1 - beta2)."""
        beta2 = h["betas"][1]
        g: Tensor = (s_next["exp_avg"] - beta2 * s["exp_avg"]) / (1 - beta2)
        return -g if h.get("maximize") else g
