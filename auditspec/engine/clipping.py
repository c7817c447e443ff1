"""Clipping of gradients by their norm, as `torch.nn.utils.clip_grad_norm_` clips, and its derivative.

With ||g|| over all parameters, L the limit, and f = min(1, L / (||g|| + 1e-6)):  g <- f g.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TINY = 1e-6
"""What torch adds to the norm."""


def factor(gradients: Mapping[str, Tensor], limit: float) -> Tensor:
    """f, a number."""
    return (limit / (norm_of(gradients) + TINY)).clamp(max=1.0)


def clip(gradients: Mapping[str, Tensor | None], limit: float | None) -> dict[str, Tensor]:
    """A step's clipped gradients.

    Args:
        gradients: g per parameter; None where the step has none.
        limit: L; None: the loop does not clip.

    Returns:
        Those that there are, detached.
    """
    present = {n: g.detach() for n, g in gradients.items() if g is not None}
    if limit is None or not present:
        return present
    scale = factor(present, limit)
    return {n: g * scale for n, g in present.items()}


def clip_rows(rows: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Clipped gradients of several runs, [n, *shape] per parameter, each by its own norm."""
    norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in rows.values()]
    if not norms:
        return {}
    scale = (limit / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + TINY)).clamp(max=1.0)
    return {n: g * scale.view(-1, *[1] * (g.dim() - 1)) for n, g in rows.items()}


def clip_tangent(
    gradients: Mapping[str, Tensor], tangents: Mapping[str, Tensor], limit: float | None
) -> dict[str, Tensor]:
    """The derivative of clipping: f dg - L / (||g|| + 1e-6)^2 <g, dg> / ||g|| g where f < 1, else dg.

    Clipping scales the gradient by a function of its norm, so its Jacobian is symmetric: the same
    product pulls cotangents back.

    Args:
        gradients: g per parameter, before clipping.
        tangents: dg per parameter, [n, *shape].
        limit: L; None: the loop does not clip.
    """
    if limit is None or not gradients:
        return dict(tangents)
    norm = norm_of(gradients)
    scale = limit / (norm + TINY)
    if scale >= 1:
        return dict(tangents)
    inner = torch.stack(
        [(t * gradients[n]).reshape(len(t), -1).sum(1) for n, t in tangents.items()]
    ).sum(0)  # [n], <g, dg>
    change = -limit / (norm + TINY) ** 2 * inner / norm
    return {
        n: scale * t + change.view(-1, *[1] * gradients[n].dim()) * gradients[n]
        for n, t in tangents.items()
    }


def norm_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm over all tensors, as torch's clipping takes it."""
    return torch.nn.utils.get_total_norm([*tensors.values()])
