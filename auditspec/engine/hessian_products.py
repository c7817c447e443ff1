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

from auditspec.engine.clipping import norm_of
from auditspec.engine.interface import Engine, StepGradient
from auditspec.errors import UnsupportedError
from auditspec.record.trajectory import StageTrajectory, Step
from auditspec.record.uncompiled import pulled_back

Products = Literal["exact", "finite-difference"]

NO_SECOND_DERIVATIVE = ("not implemented", "does not support", "differentiable", "derivative")


class HessianProducts:
    """H_k w at the steps of a re-run.

    Finite differences (one gradient a direction beside g; Pearlmutter 1994, eq. 1):

        H w = (g(theta + eps w) - g(theta)) / eps

    with eps = sqrt(e (1 + ||theta||)) / ||w||, e the precision's unit roundoff: the balance of rounding
    and truncation (Nocedal & Wright 2006, section 8.1) at the length of Pernice & Walker (1998, SIAM J.
    Sci. Comput. 19, 302). Every evaluation draws the random numbers of the record.

    Where a direction is longer along numbers without any gradient (embedding rows that no example uses)
    than along all others, it would set eps by what H mostly does not see. That part is differenced on its
    own, centrally, (g(theta + eps w) - g(theta - eps w)) / (2 eps) with cbrt(e) in place of sqrt(e), for
    two gradients more: exactly 0, bit for bit, where the step uses none of it.

    Args:
        engine: whose model holds theta.
        kind: exact, or finite-difference.

    Attributes:
        gradients: cost so far of the products alone, in gradients; an exact product counts as 2.
    """

    def __init__(self, engine: Engine, kind: Products = "exact") -> None:
        self.engine = engine
        self.kind = kind
        self.gradients = 0
        self._examined: set[str] = set()
        if kind == "finite-difference":
            _refuse_low_precision({n: p.dtype for n, p in engine.model.named_parameters()})
            _refuse_autocast(engine)

    def step_gradient(
        self, stage: StageTrajectory, step: Step, optimizer: Optimizer
    ) -> StepGradient:
        """g_k at the model's parameters, ready for products."""
        exact = self.kind == "exact"
        return self.engine.gradient(stage, step, optimizer, create_graph=exact, differentiate=True)

    def __call__(
        self, step_gradient: StepGradient, directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """H w for several directions w of one step.

        Args:
            step_gradient: the step, with the model's parameters at theta_k; g_k with its graph for exact
                products.
            directions: w per trainable parameter, [n, *shape].

        Returns:
            H w per parameter of the directions, [n, *shape].

        Raises:
            UnsupportedError: if an operation of the model has no second derivative.
        """
        count = next(iter(directions.values())).shape[0]
        if self.kind == "finite-difference":
            rows = [
                self._differences(step_gradient, {n: w[i] for n, w in directions.items()})
                for i in range(count)
            ]
            return {n: torch.stack([row[n] for row in rows]) for n in directions}
        if step_gradient.stage.id not in self._examined:
            require_second_derivatives(step_gradient.gradients)
            self._examined.add(step_gradient.stage.id)
        self.gradients += 2 * count * len(step_gradient.step.batches)
        return self.engine.hessian_vector(step_gradient, directions)

    def _differences(
        self, step_gradient: StepGradient, w: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """H w of one direction, by finite differences."""
        g = _filled(along(step_gradient), w)
        without = {n: t * (g[n] == 0) for n, t in w.items()}
        usual = {n: t - without[n] for n, t in w.items()}
        if norm_of(without) <= norm_of(usual):
            return self._quotient(step_gradient, w, g)
        apart = self._quotient(step_gradient, without, None)
        return {n: t + apart[n] for n, t in self._quotient(step_gradient, usual, g).items()}

    def _quotient(
        self,
        step_gradient: StepGradient,
        w: Mapping[str, Tensor],
        g: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """H w, one-sided from g, or centrally without it."""
        length = float(norm_of(w))
        if length == 0:
            return {n: torch.zeros_like(t) for n, t in w.items()}
        theta = {n: step_gradient.parameters[n].detach().clone() for n in w}
        e = torch.finfo(next(iter(w.values())).dtype).eps / 2
        eps = (
            math.sqrt(1 + float(norm_of(theta)))
            * (e ** (1 / 3) if g is None else math.sqrt(e))
            / length
        )

        def gradient(eps: float) -> dict[str, Tensor]:
            for name, start in theta.items():
                step_gradient.parameters[name].data.copy_(torch.add(start, w[name], alpha=eps))
            self.gradients += len(step_gradient.step.batches)
            moved = self.engine.gradient(
                step_gradient.stage,
                step_gradient.step,
                step_gradient.optimizer,
                differentiate=bool(step_gradient.frozen_gradients),
            )
            return _filled(along(moved), w)

        try:
            up = gradient(eps)
            down, width = (gradient(-eps), 2 * eps) if g is None else (g, eps)
        finally:
            for name, start in theta.items():
                step_gradient.parameters[name].data.copy_(start)
        return {n: (t - down[n]) / width for n, t in up.items()}


def _filled(
    gradients: Mapping[str, Tensor | None], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of some parameters; zeros where the loss does not reach."""
    reached = {n: gradients.get(n) for n in like}
    return {n: torch.zeros_like(like[n]) if g is None else g for n, g in reached.items()}


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


def _refuse_autocast(engine: Engine) -> None:
    """Refuse finite differences of gradients that autocast rounds.

    Raises:
        UnsupportedError: naming the first stage under autocast.
    """
    for stage in engine.trajectory.stages:
        if (kind := engine.autocast(stage)) is not None:
            raise UnsupportedError(
                f"finite differences of gradients under autocast to {kind.dtype} are noise "
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
            row = pulled_back(
                list(reached.values()),
                list(leaves.values()),
                [directions[n][i] for n in reached],
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
