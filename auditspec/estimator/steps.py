"""The optimizers' update maps, xi' = U(xi, g; h), as functions that can be differentiated.

Each map takes one parameter's tensors and equals one step of the torch.optim class of its name
(tests compare them over 50 steps in float64). They are elementwise and built from differentiable
operations, so a tangent is `torch.func.jvp` of the very function that computes the step.

The state s of a parameter is a dict: `momentum_buffer` for SGD, `exp_avg` and `exp_avg_sq` for
Adam and AdamW. Counters are arguments of their own and are never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from auditspec.errors import UnsupportedError

Options = Mapping[str, Any]
Slots = dict[str, Tensor]
UpdateMap = Callable[..., tuple[Tensor, Slots]]
"""(theta, s, g, steps made so far, h) -> (theta', s'); all tensors of theta's shape."""


def sgd(theta: Tensor, s: Slots, g: Tensor, count: int, h: Options) -> tuple[Tensor, Slots]:
    """torch.optim.SGD, after Sutskever et al. (2013): b' = mu b + (1 - tau) g, theta' = theta - lr d.

    At a parameter's first step b' = g (no dampening), as torch does. d is g without momentum, b'
    with momentum, g + mu b' with Nesterov momentum; g includes the weight decay.
    """
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * theta
    mu = h["momentum"]
    if mu == 0:
        return theta - h["lr"] * g, s
    b = g if count == 0 else mu * s["momentum_buffer"] + (1 - h["dampening"]) * g
    d = g + mu * b if h["nesterov"] else b
    return theta - h["lr"] * d, {"momentum_buffer": b}


def adam(theta: Tensor, s: Slots, g: Tensor, count: int, h: Options) -> tuple[Tensor, Slots]:
    """torch.optim.Adam (Kingma & Ba 2015): theta' = theta - lr m_hat / (sqrt(v_hat) + eps)."""
    if h.get("decoupled_weight_decay"):
        return adamw(theta, s, g, count, h)
    if h["maximize"]:
        g = -g
    return _adam_step(theta, s, g + h["weight_decay"] * theta, count, h)


def adamw(theta: Tensor, s: Slots, g: Tensor, count: int, h: Options) -> tuple[Tensor, Slots]:
    """torch.optim.AdamW (Loshchilov & Hutter 2019): the decay shrinks theta, not the gradient."""
    if h["maximize"]:
        g = -g
    return _adam_step(theta * (1 - h["lr"] * h["weight_decay"]), s, g, count, h)


def _adam_step(theta: Tensor, s: Slots, g: Tensor, count: int, h: Options) -> tuple[Tensor, Slots]:
    beta1, beta2 = h["betas"]
    t = count + 1
    m = beta1 * s["exp_avg"] + (1 - beta1) * g
    v = beta2 * s["exp_avg_sq"] + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    root_v_hat = safe_sqrt(v) / (1 - beta2**t) ** 0.5
    return theta - h["lr"] * m_hat / (root_v_hat + h["eps"]), {"exp_avg": m, "exp_avg_sq": v}


def safe_sqrt(v: Tensor) -> Tensor:
    """Square root whose derivative at 0 is defined as 0.

    Where v = 0 every gradient so far was 0, hence m = 0 too, and the step's derivative in any
    direction is that of m_hat / eps alone: the root's own derivative is multiplied by m_hat = 0.
    So 0 is the right value, and it keeps infinity times zero out of tangents (constant pixels,
    embedding rows that no example uses).
    """
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, torch.ones_like(v)).sqrt(), 0 * v)


_MAPS: dict[str, UpdateMap] = {"SGD": sgd, "Adam": adam, "AdamW": adamw}
_SLOTS = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
}


def update_map(optimizer: str, h: Options) -> UpdateMap:
    """The update map of a torch.optim class.

    Raises:
        UnsupportedError: for an optimizer or an option (amsgrad) without a map.
    """
    if optimizer not in _MAPS:
        raise UnsupportedError(
            f"derivatives of {optimizer} are not available (SGD, Adam, and AdamW are)",
            "use estimator.method: replay, which takes any optimizer",
        )
    if h.get("amsgrad"):
        raise UnsupportedError(
            f"derivatives of {optimizer} with amsgrad are not available",
            "use estimator.method: replay, which takes any optimizer",
        )
    return _MAPS[optimizer]


def slot_names(optimizer: str, h: Options) -> tuple[str, ...]:
    """The slots of s that the update map uses."""
    return () if optimizer == "SGD" and h["momentum"] == 0 else _SLOTS[optimizer]


def steps_made(optimizer: str, moments: Mapping[str, Any]) -> int:
    """A parameter's counter from its torch.optim state; SGD only knows whether there was a step."""
    if optimizer == "SGD":
        return int(moments.get("momentum_buffer") is not None)
    return int(moments.get("step", 0))


def slots(
    optimizer: str, h: Options, moments: Mapping[str, Any], theta: Tensor
) -> tuple[Slots, int]:
    """A parameter's s and counter from its torch.optim state; zeros before the first step."""
    held = {
        n: moments[n] if moments.get(n) is not None else torch.zeros_like(theta)
        for n in slot_names(optimizer, h)
    }
    return held, steps_made(optimizer, moments)


def gradient_between(
    optimizer: str,
    h: Options,
    theta: Tensor,
    s: Slots,
    s_next: Slots,
    count: int,
) -> Tensor | None:
    """The gradient that a step used, read off the moments before and after it.

    The first moment is linear in g: b' = mu b + (1 - tau) g for SGD (b' = g at the first step),
    m' = beta1 m + (1 - beta1) g for Adam; g there includes coupled weight decay, which is taken off.
    Where the loop clips, this is the clipped gradient.

    Args:
        optimizer: class name in torch.optim.
        h: hyperparameters of the step.
        theta: the parameter before the step.
        s: its moments before the step, as `slots` gives them.
        s_next: its moments after the step.
        count: steps made before this one.

    Returns:
        g, of theta's shape; None where no moment holds it (SGD without momentum, other optimizers).
    """
    held: Tensor
    if optimizer == "SGD" and h["momentum"] != 0 and h["dampening"] != 1:
        b, b_next = s["momentum_buffer"], s_next["momentum_buffer"]
        held = b_next if count == 0 else (b_next - h["momentum"] * b) / (1 - h["dampening"])
        decay = h["weight_decay"]
    elif optimizer in ("Adam", "AdamW"):
        beta1 = h["betas"][0]
        # solved for g as torch writes m', a lerp: in float32 beta1 m itself would leave a bias along m
        held = s["exp_avg"] + (s_next["exp_avg"] - s["exp_avg"]) / (1 - beta1)
        decoupled = optimizer == "AdamW" or h.get("decoupled_weight_decay")
        decay = 0.0 if decoupled else h["weight_decay"]
    else:
        return None
    g = held - decay * theta if decay else held
    return -g if h.get("maximize") else g


Pullback = Callable[[Tensor, Slots], tuple[Tensor, Slots, Tensor]]
"""(lambda_theta', lambda_s') -> (lambda_theta, lambda_s, lambda_g): J^T of a step. Cotangents are
[n, *shape]; a slot that is missing from lambda_s' is zero."""


def update_vjp(
    optimizer: str, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
) -> tuple[Tensor, Slots, Pullback]:
    """A step's update u = U(xi, g) - xi, and the pullback of U at (theta, s, g), written out by hand.

    The derivatives are those of `update_map`, whose own autograd the tests hold them to; by hand they
    take about ten elementwise operations a step, and work on many parameters laid out in one vector.

    Args:
        optimizer: class name in torch.optim, one that `update_map` knows.
        theta: the parameters, of any shape, like s and g.
        s: their moments, as `slots` gives them.
        g: their gradient, after clipping.
        count: steps made before this one.
        h: hyperparameters of the step.

    Returns:
        u_theta, u_s (as `s`), and the pullback.

    Raises:
        UnsupportedError: for an optimizer or an option without a map.
    """
    update_map(optimizer, h)
    if optimizer == "SGD":
        return _sgd_vjp(theta, s, g, count, h)
    return _adam_vjp(
        theta,
        s,
        g,
        count,
        h,
        decoupled=optimizer == "AdamW" or bool(h.get("decoupled_weight_decay")),
    )


def _sgd_vjp(
    theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
) -> tuple[Tensor, Slots, Pullback]:
    """With b' = mu b + c g, d = k g + n b' the step: lambda_b' takes -lr n lambda_theta' first."""
    sign, lr, mu, decay = -1.0 if h["maximize"] else 1.0, h["lr"], h["momentum"], h["weight_decay"]
    g = torch.add(g if sign > 0 else -g, theta, alpha=decay)

    def through_gradient(a: Tensor, theta_next: Tensor) -> tuple[Tensor, Tensor]:
        return (
            torch.add(theta_next, a, alpha=decay) if decay else theta_next
        ), a if sign > 0 else -a

    if mu == 0:

        def plain(theta_next: Tensor, s_next: Slots) -> tuple[Tensor, Slots, Tensor]:
            theta_bar, g_bar = through_gradient(-lr * theta_next, theta_next)
            return theta_bar, s_next, g_bar

        return -lr * g, {}, plain
    b = s["momentum_buffer"]
    c = 1.0 if count == 0 else 1 - h["dampening"]
    b_next = g if count == 0 else mu * b + c * g
    k, n = (1.0, mu) if h["nesterov"] else (0.0, 1.0)
    d = g + mu * b_next if h["nesterov"] else b_next

    def pull(theta_next: Tensor, s_next: Slots) -> tuple[Tensor, Slots, Tensor]:
        a_b = -lr * n * theta_next
        if "momentum_buffer" in s_next:
            a_b += s_next["momentum_buffer"]
        a = c * a_b - lr * k * theta_next if k else c * a_b
        theta_bar, g_bar = through_gradient(a, theta_next)
        b_bar = torch.zeros_like(a_b) if count == 0 else mu * a_b
        return theta_bar, {"momentum_buffer": b_bar}, g_bar

    return -lr * d, {"momentum_buffer": b_next - b}, pull


def _adam_vjp(
    theta: Tensor, s: Slots, g: Tensor, count: int, h: Options, *, decoupled: bool
) -> tuple[Tensor, Slots, Pullback]:
    """With r = sqrt(v_hat), d = r + eps, step = lr m_hat / d, the cotangents are as follows.

    a_m = lambda_m' - lr / (1 - beta1^t) / d lambda_theta',
    a_v = lambda_v' + step / d / (2 (1 - beta2^t) r) lambda_theta' (0 where v' = 0, as in safe_sqrt),
    lambda_g = (1 - beta1) a_m + 2 (1 - beta2) g a_v, lambda_m = beta1 a_m, lambda_v = beta2 a_v.
    """
    beta1, beta2 = h["betas"]
    sign, lr, decay = -1.0 if h["maximize"] else 1.0, h["lr"], h["weight_decay"]
    coupled, shrink = (0.0, lr * decay) if decoupled else (decay, 0.0)
    one, two = 1 - beta1 ** (count + 1), 1 - beta2 ** (count + 1)
    g = g if sign > 0 else -g
    g = torch.add(g, theta, alpha=coupled) if coupled else g
    m, v = s["exp_avg"], s["exp_avg_sq"]
    m_next, v_next = torch.lerp(m, g, 1 - beta1), torch.addcmul(beta2 * v, g, g, value=1 - beta2)
    up = {"exp_avg": m_next - m, "exp_avg_sq": v_next - v}
    root = v_next.sqrt_()  # r and d here are sqrt(1 - beta2^t) times those above
    inverse = torch.add(root, h["eps"] * two**0.5).reciprocal_()  # 1 / d
    per_m = inverse * (-lr * two**0.5 / one)
    step = m_next.mul_(per_m)  # theta's, without the decay
    per_v = inverse.mul_(step).div_(root).nan_to_num_(0.0, 0.0, 0.0).mul_(-0.5)  # / 0 is 0
    slope = g * (2 - 2 * beta2)

    def pull(theta_next: Tensor, s_next: Slots) -> tuple[Tensor, Slots, Tensor]:
        if "exp_avg" in s_next:
            a_m = torch.addcmul(s_next["exp_avg"], per_m, theta_next)
            a_v = torch.addcmul(s_next["exp_avg_sq"], per_v, theta_next)
        else:
            a_m, a_v = per_m * theta_next, per_v * theta_next
        a = torch.addcmul((1 - beta1) * a_m, slope, a_v)
        theta_bar = (1 - shrink) * theta_next if shrink else theta_next
        if coupled:
            theta_bar = torch.add(theta_bar, a, alpha=coupled)
        return theta_bar, {"exp_avg": beta1 * a_m, "exp_avg_sq": beta2 * a_v}, a if sign > 0 else -a

    return torch.add(step, theta, alpha=-shrink) if shrink else step, up, pull
