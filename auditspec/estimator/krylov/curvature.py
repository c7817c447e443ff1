"""Curvature of a stage's loss at one state, on a sample of its minibatches, as an operator.

`hessian`: the second derivative of the loss; `positive`, the same, whose negative part the estimator
drops. `gauss-newton`: J^T B J, with J the derivative of the
model's output z and B the second derivative of the loss in z (Schraudolph 2002); positive
semidefinite where the loss is convex in z. It exists where the objective calls the model once and
depends on the parameters through the output alone; that is checked.

Gauss-Newton needs no access to the loss. With e = 0 added to the output, the gradient is
g(e) = J^T dL/dz(z + e), so d<g, v>/de = B J v, and J^T carries it back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from auditspec.engine.clipping import factor
from auditspec.engine.hessian_products import hessian_vector
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.model_output import no_gauss_newton, through_output
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory, Step
from auditspec.record.uncompiled import pulled_back

CurvatureKind = Literal["positive", "gauss-newton", "hessian"]
Visit = Callable[[StepGradient], None]
CHECK_TOLERANCE = 1e-3


class Curvature(ABC):
    """The mean curvature of several steps' losses at one state.

    Where the loop clips, a step's curvature counts by its clipping factor, min(1, L / ||g||); the
    derivative of that factor is left out.
    """

    step_gradients: Sequence[StepGradient]

    @abstractmethod
    def product(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """C v of one direction v, per parameter; zeros where the loss does not reach."""

    @property
    def reached(self) -> set[str]:
        """Parameters that some step's loss reaches."""
        return {n for m in self.step_gradients for n, g in m.gradients.items() if g is not None}

    @property
    def cost(self) -> int:
        """Minibatch gradients that one pass over the sample takes."""
        return sum(len(m.step.batches) for m in self.step_gradients)


@dataclass(frozen=True)
class Hessian(Curvature):
    """By differentiating the gradients once more."""

    step_gradients: Sequence[StepGradient]

    def product(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """C v (see `Curvature`)."""
        total = {n: torch.zeros_like(t) for n, t in v.items()}
        directions = {n: t[None] for n, t in v.items()}
        for m in self.step_gradients:
            share = clipping_factor(m) / len(self.step_gradients)
            for name, rows in hessian_vector(m.gradients, m.parameters, directions).items():
                total[name] += share * rows[0]
        return total


@dataclass(frozen=True)
class Output:
    """What one forward pass of the model gave: z, and the e that was added to it."""

    z: Tensor
    e: Tensor
    loss: Tensor


@dataclass(frozen=True)
class GaussNewton(Curvature):
    """By differentiating the gradients with respect to the model's output."""

    step_gradients: Sequence[StepGradient]
    outputs: Sequence[Sequence[Output]]
    """Of each step, one for each microbatch."""

    def product(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """C v (see `Curvature`)."""
        total = {n: torch.zeros_like(t) for n, t in v.items()}
        for m, outputs in zip(self.step_gradients, self.outputs, strict=True):
            share = clipping_factor(m) / len(self.step_gradients)
            reached = {n: g for n, g in m.gradients.items() if g is not None and g.requires_grad}
            bjv = pulled_back(
                list(reached.values()),
                [o.e for o in outputs],
                [v[n] for n in reached],
                retain_graph=True,
                allow_unused=True,
            )
            for output, w in zip(outputs, bjv, strict=True):
                if w is not None:  # None: the loss is linear in the output
                    for name, product in _back(output.z, m.parameters, w).items():
                        total[name] += share * product
        return total


@dataclass
class _Outputs:
    """An objective that keeps the model's outputs."""

    objective: Callable[[nn.Module, Any], Tensor]
    kept: list[Output] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss, z, e = through_output(self.objective, model, batch)
        self.kept.append(Output(z, e, loss))
        return loss


def curvature_at(
    rerun: Engine,
    stage: StageTrajectory,
    state: State,
    steps: Sequence[Step],
    kind: CurvatureKind,
    visit: Visit | None = None,
) -> Curvature:
    """The curvature at a state on the minibatches (and random states) of some steps.

    To be used inside `rerun.training()`, and before the model's parameters change again.

    Raises:
        UnsupportedError: for Gauss-Newton where the objective does not fit it.
    """
    optimizer = rerun.optimizer(stage)
    restore(state, rerun.model, optimizer)
    if kind != "gauss-newton":
        found = []
        for step in steps:
            found.append(rerun.gradient(stage, step, optimizer, create_graph=True))
            if visit is not None:
                visit(found[-1])
        return Hessian(found)
    keeper = _Outputs(rerun.functions.objectives[stage.id])
    step_gradients, outputs = [], []
    for step in steps:
        keeper.kept = []
        step_gradients.append(
            rerun.gradient(stage, step, optimizer, create_graph=True, objective=keeper)
        )
        outputs.append(keeper.kept)
        if visit is not None:
            visit(step_gradients[-1])
    _check_through_output(stage, step_gradients[0], outputs[0])
    return GaussNewton(step_gradients, outputs)


def mean_gradient(step_gradients: Sequence[StepGradient]) -> dict[str, Tensor]:
    """Mean gradient of a sample, each step's clipped as the loop clips."""
    total: dict[str, Tensor] = {}
    for m in step_gradients:
        share = clipping_factor(m) / len(step_gradients)
        for name, g in _present(m).items():
            total[name] = total.get(name, torch.zeros_like(g)) + share * g
    return total


def clipping_factor(step_gradient: StepGradient) -> float:
    """min(1, L / ||g||) of a step; 1 where the loop does not clip."""
    limit = step_gradient.stage.header.clip_norm
    if limit is None:
        return 1.0
    return float(factor({n: g.double() for n, g in _present(step_gradient).items()}, limit))


def _check_through_output(
    stage: StageTrajectory, step_gradient: StepGradient, outputs: Sequence[Output]
) -> None:
    """The loss depends on the parameters through the output alone: g = J^T dL/dz."""
    through = {n: torch.zeros_like(g) for n, g in _present(step_gradient).items()}
    for output, microbatch in zip(outputs, step_gradient.step.batches, strict=True):
        (slope,) = torch.autograd.grad(output.loss, output.e, retain_graph=True)
        for name, g in _back(output.z, step_gradient.parameters, slope * microbatch.weight).items():
            through[name] += g
    off = sum(float((through[n] - g).square().sum()) for n, g in _present(step_gradient).items())
    size = sum(float(g.square().sum()) for g in _present(step_gradient).values())
    if off > CHECK_TOLERANCE**2 * size:
        raise no_gauss_newton(
            f"stage '{stage.id}': its objective depends on the parameters beside the model's output"
        )


def _present(step_gradient: StepGradient) -> dict[str, Tensor]:
    return {n: g.detach() for n, g in step_gradient.gradients.items() if g is not None}


def _back(z: Tensor, parameters: Mapping[str, Tensor], w: Tensor) -> dict[str, Tensor]:
    """J^T w, of the parameters that the output depends on."""
    leaves = {n: p for n, p in parameters.items() if p.requires_grad}
    found = pulled_back(z, list(leaves.values()), w, retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}
