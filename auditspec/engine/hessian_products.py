"""Derivative products of gradients: exact, by double reverse-mode differentiation, or by finite
differences of the gradient.

Exact products go through attention by torch's math kernel (`numerics.twice_differentiable`): the fused
ones have a gradient and no second derivative. Finite differences need first gradients only, those of
the kernel that trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from auditspec.engine.flat_parameters import FlatParameters
from auditspec.engine.interface import Engine, Pass, StepGradient
from auditspec.errors import UnsupportedError
from auditspec.record.trajectory import StageTrajectory, Step

Products = Literal["exact", "finite-difference"]

NO_SECOND_DERIVATIVE = ("not implemented", "does not support", "differentiable", "derivative")


class HessianProducts:
    """H_k w at the steps of a re-run.

    Finite differences (one gradient a direction beside g, two if central; Pearlmutter 1994, eq. 1):

        H w = (g(theta + eps w) - g(theta)) / eps,  (g(theta + eps w) - g(theta - eps w)) / (2 eps)

    with eps = sqrt(e (1 + ||theta||)) / ||w|| one-sided and cbrt(e) in place of sqrt(e) if central, e
    the precision's unit roundoff: the balance of rounding and truncation (Nocedal & Wright 2006, section
    8.1) at the length of Pernice & Walker (1998, SIAM J. Sci. Comput. 19, 302). Every evaluation draws
    the random numbers of the record.

    Args:
        rerun: whose model holds theta.
        kind: exact, or finite-difference.

    Attributes:
        gradients: cost so far of the products alone, in gradients; an exact product counts as 2.
    """

    def __init__(self, rerun: Engine, kind: Products = "exact") -> None:
        self.rerun = rerun
        self.kind = kind
        self.gradients = 0
        self._examined: set[str] = set()
        if kind == "finite-difference":
            _refuse_low_precision({n: p.dtype for n, p in rerun.model.named_parameters()})
            _refuse_autocast(rerun)

    def step_gradient(
        self, stage: StageTrajectory, step: Step, optimizer: Optimizer
    ) -> StepGradient:
        """g_k at the model's parameters, ready for products."""
        exact = self.kind == "exact"
        return self.rerun.gradient(stage, step, optimizer, create_graph=exact, differentiate=True)

    def __call__(
        self,
        step_gradient: StepGradient,
        directions: Mapping[str, Tensor],
        *,
        central: bool = False,
    ) -> dict[str, Tensor]:
        """H w for several directions w of one step.

        Args:
            step_gradient: the step, with the model's parameters at theta_k; g_k with its graph for exact
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
            with FlatParameters({n: step_gradient.parameters[n] for n in directions}) as memory:
                layout, theta = memory.layout, memory.theta.clone()
                g, w = layout.vector(along(step_gradient)), layout.rows(directions, count)
                products = self.differences(step_gradient, theta, g, w, memory, central=central)
            return layout.split(products)
        if step_gradient.stage.id not in self._examined:
            require_second_derivatives(step_gradient.gradients)
            self._examined.add(step_gradient.stage.id)
        self.gradients += 2 * count * len(step_gradient.step.batches)
        return self.rerun.hessian_vector(step_gradient, directions)

    def differences(
        self,
        step_gradient: StepGradient,
        theta: Tensor,
        g: Tensor,
        w: Tensor,
        memory: FlatParameters,
        *,
        central: bool = False,
        passes: Pass | None = None,
    ) -> Tensor:
        """H w, [n, P], by finite differences, of what stands in vectors already.

        Args:
            step_gradient: the step.
            theta: theta_k, [P].
            g: its gradient, [P]; central differences leave it unused.
            w: directions, [n, P].
            memory: of the model's parameters, which are not put back.
            central: as in a call.
            passes: as in `Engine.gradient`.
        """
        size = math.sqrt(1 + float(torch.linalg.vector_norm(theta)))
        e = torch.finfo(w.dtype).eps / 2
        scale = size * (e ** (1 / 3) if central else math.sqrt(e))
        products = torch.empty_like(w)

        def gradient(eps: float, direction: Tensor) -> Tensor:
            torch.add(theta, direction, alpha=eps, out=memory.theta)
            self.gradients += len(step_gradient.step.batches)
            moved = self.rerun.gradient(
                step_gradient.stage,
                step_gradient.step,
                step_gradient.optimizer,
                differentiate=bool(step_gradient.frozen_gradients),
                passes=passes,
            )
            return memory.layout.vector(along(moved))

        for direction, product in zip(w, products, strict=True):
            length = float(torch.linalg.vector_norm(direction))
            if length == 0:
                product.zero_()
                continue
            eps = scale / length
            up, down = gradient(eps, direction), gradient(-eps, direction) if central else g
            torch.sub(up, down, out=product).div_(2 * eps if central else eps)
        return products


def along(step_gradient: StepGradient) -> Mapping[str, Tensor | None]:
    """g_k, also of the parameters that only this stage freezes."""
    if not step_gradient.frozen_gradients:
        return step_gradient.gradients
    return step_gradient.gradients | step_gradient.frozen_gradients


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


def _refuse_autocast(rerun: Engine) -> None:
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


def require_second_derivatives(gradients: Mapping[str, Tensor | None]) -> None:
    """Refuse a graph of gradients that ends in an operation marked as differentiable once.

    torch puts a node that raises into the graph there. But the node leads to no parameter, so that
    asking for the parameters' gradients never runs it: the product would silently lack a part.

    Raises:
        UnsupportedError: if there is such a node.
    """
    ends = [g.grad_fn for g in gradients.values() if g is not None]
    open_nodes = [node for node in ends if node is not None]
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node.name().endswith("Error"):
            raise _no_second_derivative("it is marked as differentiable once")
        new = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= new
        open_nodes.extend(new)


def _no_second_derivative(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"an operation of the model has no second derivative ({why})",
        "use finite-difference products, or estimator.method: replay",
    )


def hessian_vector(
    gradients: Mapping[str, Tensor | None],
    parameters: Mapping[str, Tensor],
    directions: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """H v for several directions v of one loss (Pearlmutter 1994).

    Args:
        gradients: g = d loss / d theta with its graph; None where the loss does not reach, and left
            out where there is no direction.
        parameters: theta, the leaves of that graph.
        directions: v per parameter, [n, *shape].

    Returns:
        H v per parameter, [n, *shape]; zeros where the loss does not reach or is linear.

    Raises:
        UnsupportedError: if an operation of the model has no second derivative.
    """
    reached = {
        n: g for n, g in gradients.items() if n in directions and g is not None and g.requires_grad
    }
    count = next(iter(directions.values())).shape[0]
    if not reached:
        return {n: torch.zeros_like(v) for n, v in directions.items()}
    rows: list[dict[str, Tensor]] = []
    leaves = {n: p for n, p in parameters.items() if p.requires_grad and n in directions}
    for i in range(count):
        try:
            row = torch.autograd.grad(
                list(reached.values()),
                list(leaves.values()),
                grad_outputs=[directions[n][i] for n in reached],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if any(word in str(error) for word in NO_SECOND_DERIVATIVE):
                raise _no_second_derivative(str(error)) from None
            raise
        rows.append({n: h for n, h in zip(leaves, row, strict=True) if h is not None})
    return {n: _stacked([row.get(n) for row in rows], v) for n, v in directions.items()}


def _stacked(rows: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """[n, *shape] of n products; zeros for one that is not there."""
    if len(rows) == 1 and rows[0] is not None:
        return rows[0][None]
    return torch.stack([torch.zeros_like(like[0]) if row is None else row for row in rows])


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
