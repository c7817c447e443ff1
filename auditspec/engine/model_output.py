"""An objective with the model's output on its way: what Gauss-Newton curvature is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from auditspec.artifacts.remote import RemoteFunction
from auditspec.errors import UnsupportedError


def through_output(
    objective: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the model's one output z, and the e = 0 that was added to z, to be differentiated by.

    Raises:
        UnsupportedError: if the objective does not call the model once, or its output is not one floating tensor.
    """
    if isinstance(objective, RemoteFunction):
        return objective.through_output(model, batch)
    seen: list[tuple[Tensor, Tensor]] = []

    def add(_: nn.Module, __: Any, z: Any) -> Tensor:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise no_gauss_newton("the model's output is not one floating tensor")
        e = torch.zeros_like(z, requires_grad=True)
        seen.append((z, e))
        return z + e

    handle = model.register_forward_hook(add)
    try:
        loss = objective(model, batch)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise no_gauss_newton(f"the objective calls the model {len(seen)} times")
    return loss, *seen[0]


def no_gauss_newton(why: str) -> UnsupportedError:
    """The error that says why there is no such curvature."""
    return UnsupportedError(
        f"{why}; its Gauss-Newton curvature is not available",
        "take the curvature `positive`, which needs second derivatives only",
    )
