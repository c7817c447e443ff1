"""Optimizers that torch.optim does not have, as a lab's training code would define them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(m.lerp(p.grad, 1 - beta1).sign_(), alpha=-group["lr"])
                m.lerp_(p.grad, 1 - beta2)


class WarmLion(torch.optim.Optimizer):
    """Lion with a warm-up of its own; keeps None, numbers, and scalars too."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: Any = (0.9, 0.99), decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["master"] = None
                    state["count"], state["kind"] = 0, "lion"
                    state["size"] = torch.zeros((), dtype=p.dtype)
                assert state["master"] is None
                m = state["exp_avg"]
                state["size"].mul_(0.5).add_(p.grad.norm())
                warm = min(1.0, (1 + state["count"]) / 4) / (1 + state["size"])
                update = (beta1 * m + (1 - beta1) * p.grad).sign()
                p.mul_(1 - group["lr"] * group["decay"]).add_(update * warm, alpha=-group["lr"])
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)
                state["count"] += 1


class SmallMuon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices, plain momentum for the rest (Jordan et al. 2024)."""

    def __init__(
        self, params: Any, lr: float, momentum: float, coefficients: Any = (3.4, -4.8, 2.0)
    ):
        defaults = {"lr": lr, "momentum": momentum, "coefficients": coefficients, "iterations": 3}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p].setdefault("buffer", torch.zeros(p.shape, dtype=torch.float32))
                held.mul_(group["momentum"]).add_(p.grad)
                update = held.to(p)
                if p.dim() == 2:
                    update = orthogonal(update, group["coefficients"], group["iterations"])
                p.add_(update, alpha=-group["lr"])


def orthogonal(g: Tensor, coefficients: Any, iterations: int) -> Tensor:
    a, b, c = coefficients
    x = g / (g.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Decayed(WarmLion):
    """Calls its parent's step, which torch hooks as well."""

    def step(self, closure: Any = None) -> None:
        super().step()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - 0.1 * group["lr"])


class Hidden(WarmLion):
    """Keeps an option where no record can see it."""

    def __init__(self, params: Any, lr: float = 1e-3, factor: float = 1.0):
        super().__init__(params, lr)
        self.factor = factor


class Counting(WarmLion):
    """Counts its steps outside its state."""

    def __init__(self, params: Any, lr: float = 1e-3):
        super().__init__(params, lr)
        self.made = 0

    def step(self, closure: Any = None) -> None:
        super().step()
        self.made += 1


class Adapting(WarmLion):
    """Learns its step size, and keeps it in the group."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            group["lr"] *= 1.01


class Global(WarmLion):
    """Keeps state that belongs to no parameter."""

    def step(self, closure: Any = None) -> None:
        super().step()
        self.state["all"]["norm"] = 1.0


class Listed(WarmLion):
    """Keeps a list per parameter."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["history"] = [1.0]


class Unruly(WarmLion):
    """Cannot be built from its groups."""

    def __init__(self, params: Any, lr: float, model: Any):
        super().__init__(params, lr)


OWN = {kind.__name__: kind for kind in (Lion, WarmLion, SmallMuon, Decayed)}
