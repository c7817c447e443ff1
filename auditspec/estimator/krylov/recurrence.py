"""The optimizers as linear recurrences under a fixed curvature and a fixed preconditioner.

With the curvature H held over a segment, a displacement delta and the displacement nu of the first
moment go through one step as

    g' = H' delta                    H' = +-H + Lambda (coupled weight decay, maximize)
    nu <- a nu + b g'
    delta <- (1 - w) delta - P (p g' + q nu)

with scalars a, b, w, p, q of the step and a diagonal P that does not change. This is the derivative
of the update maps of `steps.py`: exactly for SGD; for Adam and AdamW with the second moment held,
P = 1 / (sqrt(v_hat) + eps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Options = Mapping[str, Any]

FIRST_MOMENT = {"SGD": "momentum_buffer", "Adam": "exp_avg", "AdamW": "exp_avg"}
"""The slot of torch.optim that nu displaces."""


class Coefficients(NamedTuple):
    """The scalars of one step."""

    a: float
    b: float
    w: float
    p: float
    q: float

    @property
    def limit(self) -> float:
        """The curvature above which the step, repeated, amplifies (Jury's criterion): 2 / lr for plain SGD.

        (2 - w)(1 + a) / (p (1 + a) + q b)
        """
        slope = self.p * (1 + self.a) + self.q * self.b
        return (2 - self.w) * (1 + self.a) / slope if slope > 0 else math.inf


def coefficients(optimizer: str, h: Options, count: int) -> Coefficients:
    """The scalars of the step that follows `count` steps; lr stands in w, p, and q.

    SGD: b' = mu b + (1 - tau) g (b' = g at the first step), theta' = theta - lr b', and with
    Nesterov momentum theta' = theta - lr (g + mu b'). Adam: m' = beta1 m + (1 - beta1) g,
    theta' = (1 - lr lambda) theta - lr m' / (1 - beta1^t) P, decay only where it is decoupled.
    """
    lr = float(h["lr"])
    if optimizer == "SGD":
        mu = h["momentum"]
        if mu == 0:
            return Coefficients(a=0.0, b=0.0, w=0.0, p=lr, q=0.0)
        a, b = (0.0, 1.0) if count == 0 else (mu, 1 - h["dampening"])
        p, q = (lr, lr * mu) if h["nesterov"] else (0.0, lr)
        return Coefficients(a, b, 0.0, p, q)
    beta1 = h["betas"][0]
    w = lr * h["weight_decay"] if _decoupled(optimizer, h) else 0.0
    return Coefficients(a=beta1, b=1 - beta1, w=w, p=0.0, q=lr / (1 - beta1 ** (count + 1)))


def coupled_decay(optimizer: str, h: Options) -> float:
    """The weight decay that is part of the gradient; 0 where it is decoupled."""
    return 0.0 if _decoupled(optimizer, h) else float(h["weight_decay"])


def preconditioner(optimizer: str, h: Options, step_gradients: Mapping[str, Any]) -> Tensor | float:
    """P without the learning rate: 1 for SGD, 1 / (sqrt(v_hat) + eps) for Adam and AdamW."""
    if optimizer == "SGD":
        return 1.0
    v, t = step_gradients["exp_avg_sq"], int(step_gradients["step"])
    held: Tensor = 1 / ((v / (1 - h["betas"][1] ** t)).sqrt() + h["eps"])
    return held


def propagate(
    values: Tensor,
    steps: Sequence[Sequence[Coefficients]],
    grams: Sequence[Tensor],
    y: Tensor,
    nu: Tensor,
    force: Tensor,
    *,
    stable: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence over the steps of a segment, in an eigenbasis of A.

    Args:
        values: eigenvalues of A, [m].
        steps: the scalars of every step, one tuple per parameter group.
        grams: G_g = Q_g Q_g^T [m, m], the part of each group in the basis; they sum to the identity.
        y: displacements, [m, c].
        nu: displacements of the first moment, [m, c].
        force: constant part of g' (of parameters that are displaced and not trained), [m, c].
        stable: whether a step takes values beyond its limit at half of it, where it damps.
    """

    def by_group(scalars: Sequence[float], x: Tensor) -> Tensor:
        if all(scalar == scalars[0] for scalar in scalars):
            return scalars[0] * x
        return torch.stack([s * gram for s, gram in zip(scalars, grams, strict=True)]).sum(0) @ x

    for groups in steps:
        a, b, w, p, q = zip(*groups, strict=True)
        held = values
        if stable:
            limit = min(group.limit for group in groups)
            held = torch.where(values > limit, limit / 2, values)
        g = held[:, None] * y + force
        nu = by_group(a, nu) + by_group(b, g)
        y = y - by_group(w, y) - by_group(p, g) - by_group(q, nu)
    return y, nu


def _decoupled(optimizer: str, h: Options) -> bool:
    return optimizer == "AdamW" or bool(h.get("decoupled_weight_decay"))
