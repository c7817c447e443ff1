"""Derivative products of gradients: exact, by double reverse-mode differentiation, or by finite
differences of the gradient.

Fused attention kernels have a gradient and no second derivative. Exact products then use torch's
math kernel, which computes the same attention from differentiable operations, and say so in a note.
Finite differences need first gradients only, and no such step aside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from auditspec.errors import UnsupportedError
from auditspec.record.rerun import Moment, Rerun
from auditspec.record.trajectory import StageTrajectory, Step

Products = Literal["exact", "finite-difference"]

NO_SECOND_DERIVATIVE = ("not implemented", "does not support", "differentiable", "derivative")
FUSED_ATTENTION = "scaled_dot_product"
"""In the name of each of torch's fused attention kernels, and so in the error of each."""
MATH_KERNEL = (
    "The model's fused attention kernel has no second derivative; the products were computed with "
    "torch's math kernel, whose gradients differ by rounding."
)


class HessianProducts:
    """H_k w at the steps of a re-run; a context, which the kernel it falls back to ends with.

    Finite differences (one gradient a direction beside g, two if central; Pearlmutter 1994, eq. 1):

        H w = (g(theta + eps w) - g(theta)) / eps,  (g(theta + eps w) - g(theta - eps w)) / (2 eps)

    with eps = sqrt(e) (1 + ||theta||) / ||w|| one-sided and cbrt(e) in its place if central, e the
    precision's unit roundoff: the balance of rounding and truncation of Knoll & Keyes (2004, J.
    Comput. Phys. 193, eq. 11) and Nocedal & Wright (2006, section 8.1). Every evaluation draws the
    random numbers of the record.

    Args:
        rerun: whose model holds theta.
        kind: exact, or finite-difference.

    Attributes:
        gradients: cost so far of the products alone, in gradients; an exact product counts as 2.
        note: what a reader should know of how they were computed, if anything.
    """

    def __init__(self, rerun: Rerun, kind: Products = "exact") -> None:
        self.rerun = rerun
        self.kind = kind
        self.gradients = 0
        self.note: str | None = None
        self._kernel = ExitStack()
        if kind == "finite-difference":
            _refuse_low_precision({n: p.dtype for n, p in rerun.model.named_parameters()})
            _refuse_autocast(rerun)

    def __enter__(self) -> HessianProducts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kernel.close()

    def moment(self, stage: StageTrajectory, step: Step, optimizer: Optimizer) -> Moment:
        """g_k at the model's parameters, ready for products."""
        return self.rerun.gradient(stage, step, optimizer, create_graph=self.kind == "exact")

    def __call__(
        self, moment: Moment, directions: Mapping[str, Tensor], *, central: bool = False
    ) -> dict[str, Tensor]:
        """H w for several directions w of one step.

        Args:
            moment: the step, with the model's parameters at theta_k; g_k with its graph for exact
                products.
            directions: w per trainable parameter, [n, *shape].
            central: whether finite differences are central: an error of eps^2, and exactly zero
                along what the step does not use. They leave g_k unused.

        Returns:
            H w per parameter of the directions, [n, *shape].

        Raises:
            UnsupportedError: if an operation of the model has no second derivative.
        """
        count = next(iter(directions.values())).shape[0]
        if self.kind == "finite-difference":
            found = [
                self._difference(moment, {n: w[i] for n, w in directions.items()}, central)
                for i in range(count)
            ]
            return {n: torch.stack([one[n] for one in found]) for n in directions}
        self.gradients += 2 * count * len(moment.step.batches)
        try:
            return hessian_vector(_along(moment, directions), moment.parameters, directions)
        except UnsupportedError as error:
            if FUSED_ATTENTION not in error.message or self.note is not None:
                raise
        self._kernel.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.note = MATH_KERNEL
        again = self.moment(moment.stage, moment.step, moment.optimizer)
        return hessian_vector(_along(again, directions), again.parameters, directions)

    def _difference(
        self, moment: Moment, direction: Mapping[str, Tensor], central: bool
    ) -> dict[str, Tensor]:
        length = _norm(direction)
        if length == 0:
            return {n: torch.zeros_like(w) for n, w in direction.items()}
        theta = {n: moment.parameters[n].detach().clone() for n in direction}
        e = torch.finfo(next(iter(theta.values())).dtype).eps / 2
        eps = (e ** (1 / 3) if central else math.sqrt(e)) * (1 + _norm(theta)) / length
        up = self._displaced(moment, theta, direction, eps)
        down = self._displaced(moment, theta, direction, -eps) if central else moment.gradients
        with torch.no_grad():
            for name, held in theta.items():
                moment.parameters[name].copy_(held)
        return {
            n: torch.zeros_like(w) if (g := up[n]) is None or (h := down[n]) is None
            else (g - h.detach()) / (2 * eps if central else eps)
            for n, w in direction.items()
        }  # fmt: skip

    def _displaced(
        self, moment: Moment, theta: Mapping[str, Tensor], w: Mapping[str, Tensor], eps: float
    ) -> dict[str, Tensor | None]:
        """G at theta + eps w, on the step's own minibatch and random numbers."""
        with torch.no_grad():
            for name, held in theta.items():
                moment.parameters[name].copy_(torch.add(held, w[name], alpha=eps))
        self.gradients += len(moment.step.batches)
        return self.rerun.gradient(moment.stage, moment.step, moment.optimizer).gradients


def _along(moment: Moment, directions: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """g_k of the parameters that have a direction, also of those that only this stage freezes."""
    every = moment.gradients | moment.frozen_gradients
    return {name: g for name, g in every.items() if name in directions}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([t.reshape(-1) for t in tensors.values()])))


def _refuse_low_precision(dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse finite differences where rounding would drown them.

    Raises:
        UnsupportedError: for parameters of less than single precision.
    """
    low = [n for n, kind in dtypes.items() if kind.itemsize < 4]
    if low:
        raise UnsupportedError(
            f"finite differences of gradients in {dtypes[low[0]]} are noise ({', '.join(low[:3])})",
            "use exact products, or estimator.dtype: float32",
        )


def _refuse_autocast(rerun: Rerun) -> None:
    """Refuse finite differences of gradients that autocast rounds.

    Raises:
        UnsupportedError: naming the first stage under autocast.
    """
    for stage in rerun.trajectory.stages:
        if (kind := rerun.autocast(stage)) is not None:
            raise UnsupportedError(
                f"finite differences of gradients under autocast to {kind} are noise "
                f"(stage '{stage.id}')",
                "use exact products, or another estimator.dtype, which leaves autocast out",
            )


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
    leaves = {n: p for n, p in parameters.items() if p.requires_grad and n in directions}
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
                    "use finite-difference products, or estimator.method: replay",
                ) from None
            raise
        for name, product in zip(leaves, found, strict=True):
            if product is not None:
                products[name][i] = product
    return products


def clip(gradients: Mapping[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Clipped gradients, as `torch.nn.utils.clip_grad_norm_` clips."""
    factor = limit / (_total_norm(gradients) + 1e-6)
    return dict(gradients) if factor >= 1 else {n: factor * g for n, g in gradients.items()}


def _total_norm(gradients: Mapping[str, Tensor]) -> Tensor:
    parts = [torch.linalg.vector_norm(g) for g in gradients.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


def clip_tangent(
    gradients: Mapping[str, Tensor], tangents: Mapping[str, Tensor], limit: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clipped gradients and their tangents, as `torch.nn.utils.clip_grad_norm_` clips.

    Clipping scales the gradient by a function of its norm, so its Jacobian is symmetric: the same
    product pulls cotangents back.

    Args:
        gradients: g per parameter.
        tangents: dg per parameter, [n, *shape].
        limit: largest 2-norm over all parameters.
    """
    norm = _total_norm(gradients)
    factor = limit / (norm + 1e-6)
    if factor >= 1:
        return dict(gradients), dict(tangents)
    inner = torch.stack(
        [(t * gradients[n]).reshape(len(t), -1).sum(1) for n, t in tangents.items()]
    ).sum(0)  # [n], <g, dg>
    d_factor = -limit / (norm + 1e-6) ** 2 * inner / norm
    clipped = {n: factor * g for n, g in gradients.items()}
    moved = {
        n: factor * t + d_factor.view(-1, *[1] * gradients[n].dim()) * gradients[n]
        for n, t in tangents.items()
    }
    return clipped, moved
