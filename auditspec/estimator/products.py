"""Derivative products of gradients, by double reverse-mode differentiation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from auditspec.errors import UnsupportedError

NO_SECOND_DERIVATIVE = ("not implemented", "does not support", "differentiable", "derivative")


def hessian_vector(
    gradients: Mapping[str, Tensor | None],
    parameters: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """H v for several directions v of one loss (Pearlmutter 1994).

    Args:
        gradients: g = d loss / d theta with its graph; None where the loss does not reach.
        parameters: theta, the leaves of that graph.
        directions: v per parameter, [n, *shape].

    Returns:
        H v per parameter, [n, *shape]; zeros where the loss does not reach or is linear.

    Raises:
        UnsupportedError: if an operation of the model has no second derivative.
    """
    reached = {n: g for n, g in gradients.items() if g is not None and g.requires_grad}
    count = next(iter(directions.values())).shape[0]
    products = {n: torch.zeros_like(v) for n, v in directions.items()}
    if not reached:
        return products
    leaves = {n: p for n, p in parameters.items() if p.requires_grad}
    for i in range(count):
        try:
            found = torch.autograd.grad(
                list(reached.values()),
                list(leaves.values()),
                grad_outputs=[directions[n][i] for n in reached],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if any(word in str(error) for word in NO_SECOND_DERIVATIVE):
                raise UnsupportedError(
                    f"an operation of the model has no second derivative ({error})",
                    "use estimator.method: replay",
                ) from None
            raise
        for name, product in zip(leaves, found, strict=True):
            if product is not None:
                products[name][i] = product
    return products


def clip_tangent(
    gradients: Mapping[str, Tensor], tangents: Mapping[str, Tensor], limit: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clipped gradients and their tangents, as `torch.nn.utils.clip_grad_norm_` clips.

    Args:
        gradients: g per parameter.
        tangents: dg per parameter, [n, *shape].
        limit: largest 2-norm over all parameters.
    """
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])
    )
    factor = limit / (norm + 1e-6)
    if factor >= 1:
        return dict(gradients), dict(tangents)
    inner = torch.stack([(t * gradients[n]).flatten(1).sum(1) for n, t in tangents.items()]).sum(
        0
    )  # [n], <g, dg>
    d_factor = -limit / (norm + 1e-6) ** 2 * inner / norm
    clipped = {n: factor * g for n, g in gradients.items()}
    moved = {
        n: factor * t + d_factor.view(-1, *[1] * gradients[n].dim()) * gradients[n]
        for n, t in tangents.items()
    }
    return clipped, moved
