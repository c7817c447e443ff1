"""The optimizers' update maps, xi' = U(xi, g; h), as functions that can be differentiated.

Each map takes one parameter's tensors and equals one step of the torch.optim class of its name
(tests compare them over 50 steps in float64). They are elementwise and built from differentiable
operations, so a tangent is `torch.func.jvp` of the very function that computes the step.

The state s of a parameter is a dict: `momentum_buffer` for SGD, `exp_avg` and `exp_avg_sq` for
Adam and AdamW. Counters are arguments of their own and are never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def steps_made(optimizer: str, optimizer_state: Mapping[str, Any]) -> int:
    """A parameter's counter from its torch.optim state; SGD only knows whether there was a step."""
    if optimizer == "SGD":
        return int(optimizer_state.get("momentum_buffer") is not None)
    return int(optimizer_state.get("step", 0))


def slots(
    optimizer: str, h: Options, optimizer_state: Mapping[str, Any], theta: Tensor
) -> tuple[Slots, int]:
    """A parameter's s and counter from its torch.optim state; zeros before the first step."""
    held = {
        n: optimizer_state[n] if optimizer_state.get(n) is not None else torch.zeros_like(theta)
        for n in slot_names(optimizer, h)
    }
    return held, steps_made(optimizer, optimizer_state)


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


def step_made(
    optimizer: str, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
) -> tuple[Tensor, Slots]:
    """`update_map` where no derivative is wanted, in fewer operations."""
    if optimizer == "SGD":
        return sgd(theta, s, g, count, h)
    coupled, shrink = _decays(optimizer, h)
    beta1, beta2 = h["betas"]
    one, two = 1 - beta1 ** (count + 1), 1 - beta2 ** (count + 1)
    g = _signed(g, theta, coupled, h)
    m = torch.lerp(s["exp_avg"], g, 1 - beta1)
    v = torch.addcmul(beta2 * s["exp_avg_sq"], g, g, value=1 - beta2)
    d = _root(v).add_(h["eps"] * two**0.5)  # sqrt(1 - beta2^t) times that of `adam`
    moved = torch.addcdiv(theta, m, d, value=-h["lr"] * two**0.5 / one)
    return moved.sub_(theta, alpha=shrink) if shrink else moved, {"exp_avg": m, "exp_avg_sq": v}


def slopes(optimizer: str, s_next: Slots, counts: Sequence[int], h: Options) -> Slots:
    """What the pullback of a step needs of the moments after it, for several steps at once.

    With r = sqrt(v'), d = r + eps sqrt(1 - beta2^t), for Adam: `exp_avg` is 1 / d, and `exp_avg_sq` is
    m' / (r d^2), or 0 where v' = 0 as in `safe_sqrt`. For SGD there is nothing.

    Args:
        optimizer: class name in torch.optim.
        s_next: moments after the steps, [steps, P] per slot.
        counts: t - 1, steps made before each.
        h: hyperparameters; the learning rate is left unused.
    """
    if optimizer == "SGD":
        return {}
    m, v = s_next["exp_avg"], s_next["exp_avg_sq"]
    shift = [h["eps"] * (1 - h["betas"][1] ** (count + 1)) ** 0.5 for count in counts]
    per_root = v.rsqrt()
    per_m = torch.add(per_root.reciprocal(), v.new_tensor(shift)[:, None]).reciprocal_()
    per_v = per_root.mul_(per_m).mul_(per_m).mul_(m).nan_to_num_(0.0, 0.0, 0.0)  # inf at v' = 0
    return {"exp_avg": per_m, "exp_avg_sq": per_v}


def pull_back(
    optimizer: str,
    slope: Slots,
    theta: Tensor,
    g: Tensor,
    count: int,
    h: Options,
    theta_next: Tensor,
    s_next: Slots,
) -> tuple[Tensor, Slots, Tensor]:
    """dU(theta, s, g; h)^T lambda', written out by hand.

    The derivatives are those of `update_map`, whose own autograd the tests hold them to; by hand they
    take a few elementwise operations, and work on many parameters laid out in one vector.

    Args:
        optimizer: class name in torch.optim, one that `update_map` knows.
        slope: of the step, [P] per slot, from `slopes`.
        theta: the parameters before the step, [P].
        g: their gradient, [P], after clipping.
        count: steps made before this one.
        h: hyperparameters of the step.
        theta_next: lambda_theta', [n, P].
        s_next: lambda_s', [n, P] per slot; a missing one is zero.

    Returns:
        lambda_theta, lambda_s, lambda_g; [n, P] each.

    Raises:
        UnsupportedError: for an optimizer or an option without a map.
    """
    update_map(optimizer, h)
    if optimizer == "SGD":
        return _sgd_back(count, h, theta_next, s_next)
    return _adam_back(optimizer, slope, theta, g, count, h, theta_next, s_next)


def _sgd_back(
    count: int, h: Options, theta_next: Tensor, s_next: Slots
) -> tuple[Tensor, Slots, Tensor]:
    """With b' = mu b + c g, d = k g + n b' the step: lambda_b' takes -lr n lambda_theta' first."""
    lr, mu, decay = h["lr"], h["momentum"], h["weight_decay"]
    if mu == 0:
        a, s_bar = -lr * theta_next, s_next
    else:
        c = 1.0 if count == 0 else 1 - h["dampening"]
        k, n = (1.0, mu) if h["nesterov"] else (0.0, 1.0)
        a_b = -lr * n * theta_next
        if "momentum_buffer" in s_next:
            a_b += s_next["momentum_buffer"]
        a = c * a_b - lr * k * theta_next if k else c * a_b
        s_bar = {"momentum_buffer": torch.zeros_like(a_b) if count == 0 else mu * a_b}
    theta_bar = torch.add(theta_next, a, alpha=decay) if decay else theta_next
    return theta_bar, s_bar, -a if h["maximize"] else a


def _adam_back(
    optimizer: str,
    slope: Slots,
    theta: Tensor,
    g: Tensor,
    count: int,
    h: Options,
    theta_next: Tensor,
    s_next: Slots,
) -> tuple[Tensor, Slots, Tensor]:
    """With f = lr sqrt(1 - beta2^t) / (1 - beta1^t), and r and d as in `slopes`, the cotangents are as follows.

    a_m = lambda_m' - f / d lambda_theta',
    a_v = lambda_v' + f m' / (2 r d^2) lambda_theta',
    lambda_g = (1 - beta1) a_m + 2 (1 - beta2) g a_v, lambda_m = beta1 a_m, lambda_v = beta2 a_v.
    """
    beta1, beta2 = h["betas"]
    coupled, shrink = _decays(optimizer, h)
    f = h["lr"] * (1 - beta2 ** (count + 1)) ** 0.5 / (1 - beta1 ** (count + 1))
    if "exp_avg" in s_next:
        a_m = torch.addcmul(s_next["exp_avg"], slope["exp_avg"], theta_next, value=-f)
        a_v = torch.addcmul(s_next["exp_avg_sq"], slope["exp_avg_sq"], theta_next, value=f / 2)
    else:
        a_m = (slope["exp_avg"] * theta_next).mul_(-f)
        a_v = (slope["exp_avg_sq"] * theta_next).mul_(f / 2)
    g = _signed(g, theta, coupled, h)
    a = torch.addcmul((1 - beta1) * a_m, g, a_v, value=2 - 2 * beta2)
    theta_bar = (1 - shrink) * theta_next if shrink else theta_next
    if coupled:
        theta_bar = torch.add(theta_bar, a, alpha=coupled)
    s_bar = {"exp_avg": a_m.mul_(beta1), "exp_avg_sq": a_v.mul_(beta2)}
    return theta_bar, s_bar, -a if h["maximize"] else a


def _decays(optimizer: str, h: Options) -> tuple[float, float]:
    """Weight decay that Adam adds to the gradient, and the part by which it shrinks theta."""
    if optimizer == "AdamW" or h.get("decoupled_weight_decay"):
        return 0.0, h["lr"] * h["weight_decay"]
    return h["weight_decay"], 0.0


def _root(v: Tensor) -> Tensor:
    """sqrt(v), by way of its reciprocal: torch's root of 0 or of a denormal takes ten times as long."""
    return v.rsqrt().reciprocal_()


def _signed(g: Tensor, theta: Tensor, coupled: float, h: Options) -> Tensor:
    """The gradient that Adam's moments take."""
    g = -g if h["maximize"] else g
    return torch.add(g, theta, alpha=coupled) if coupled else g
