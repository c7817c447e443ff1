"""The adjoint of training: `first-order` in one backward sweep along the record.

With xi = (theta, s), xi_{k+1} = f_k(xi_k), J_k = d f_k / d xi and u_k = xi_{k+1} - xi_k at the
recorded states:

    lambda_K = (grad gamma(theta_K), 0),    lambda_k = J_k^T lambda_{k+1},
    effect(S) = sum over k in S of lambda_{k+1} . u_k,

which is the tangent's - grad gamma . delta_K, read the other way: one sweep gives every stage and
every step, one behaviour a row. The updates of parameters and moments are gated, weight decay with
them, not the weights of the data: those scores sum to about zero under Adam, whose step does not
depend on the gradient's scale.

One step backwards, with lambda' = (lambda_theta', lambda_s') behind it:

    (a_theta, a_s, a_g) = dU(theta, s, g; h)^T lambda'       `UpdateRule.pull_back`
    lambda_theta = a_theta + H_k C^T a_g,  lambda_s = a_s    C the Jacobian of clipping

At a `reset` boundary lambda_s becomes 0, at a `carry` boundary it crosses. A parameter that a stage
froze after an earlier one moved it gains its part of H_k C^T a_g, and steps no further.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditspec.engine.clipping import clip, clip_tangent
from auditspec.engine.hessian_products import HessianProducts, Products
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.optimizers import rule_of
from auditspec.engine.optimizers.interface import Slots
from auditspec.errors import EstimationError
from auditspec.estimator.interface import Context
from auditspec.estimator.linear.checkpointing import backwards, most_states
from auditspec.estimator.requirements import require_derivatives, require_known_steps
from auditspec.progress import Advance
from auditspec.record.state import State, capture, named_parameters, restore
from auditspec.record.trajectory import StageTrajectory


@dataclass(frozen=True)
class Contributions:
    """What every step of training contributed to one behaviour, to first order."""

    behavior: str
    steps: dict[str, NDArray[np.float64]]
    """Per stage, [steps]: lambda_{k+1} . u_k in units of gamma; the sum over a stage is its linear
    effect, gamma(theta_K) - gamma(theta_K without the stage)."""
    gradients: float
    """Cost in minibatch gradients, this behaviour's share; an exact Hessian-vector product counts as
    2 beside its gradient."""
    seconds: float

    def effect(self, stage: str) -> float:
        """The linear effect of a stage, > 0 if it raised gamma."""
        return float(self.steps[stage].sum())


@dataclass
class Costate:
    """lambda_k of several behaviours, one a row."""

    count: int
    """n, of the behaviours."""
    theta: dict[str, Tensor]
    """[n, *shape] per parameter; a missing one is zero."""
    s: dict[str, Slots] = field(default_factory=dict)
    """[n, *shape] per parameter and slot; a missing one is zero."""

    def cross(self, stage: StageTrajectory) -> None:
        """Go back over the boundary before a stage.

        A fresh optimizer owes nothing to the last. Where the model was changed, what was carried
        goes by its old name, joined by its copies, and what was added ends: its initial value owes
        nothing to training.
        """
        theta: dict[str, Tensor] = {}
        for new, old in stage.origin.items():
            if new in self.theta:
                theta[old] = theta[old] + self.theta[new] if old in theta else self.theta[new]
        self.theta = theta
        carry = stage.header.boundary == "carry"
        self.s = {
            old: self.s[new] for new, old in stage.survivors.items() if carry and new in self.s
        }

    def step_back(self, step_gradient: StepGradient, hessian: HessianProducts) -> Tensor:
        """From lambda_{k+1} to lambda_k, in place; gives lambda_{k+1} . u_k, [n].

        Args:
            step_gradient: step k, with the model and the optimizer at xi_k.
            hessian: gives H_k w.
        """
        header = step_gradient.stage.header
        g = {n: t.detach() for n, t in step_gradient.gradients.items() if t is not None}
        clipped = clip(g, header.clip_norm)
        w = {
            n: p.new_zeros((self.count, *p.shape))
            for n, p in step_gradient.parameters.items()
            if p.requires_grad
        }
        term = torch.zeros(self.count, dtype=torch.float64)
        for group, h in zip(header.groups, step_gradient.step.groups, strict=True):
            rule = rule_of(header.optimizer, h)
            for name in group.parameters:
                if name not in g:
                    continue  # torch.optim leaves a parameter without a gradient as it is
                theta = step_gradient.parameters[name].detach()
                s, steps_made = rule.read(step_gradient.optimizer_state(name), theta, h)
                (theta_next, s_next), pull = rule.pull_back(theta, s, clipped[name], steps_made, h)
                behind, moments = self.theta[name], self.s.get(name, {})
                term += _products(behind, theta_next - theta)
                for slot in s.keys() & moments.keys():
                    term += _products(moments[slot], s_next[slot] - s[slot])
                self.theta[name], pulled, w[name] = pull(behind, moments)
                self.s[name] = moments | pulled
        w |= clip_tangent(g, {n: w[n] for n in g}, header.clip_norm)
        for name, product in hessian(step_gradient, w).items():
            self.theta[name] = self.theta[name] + product
        return term


def adjoint(
    context: Context, slopes: Mapping[str, Mapping[str, Tensor]], *, products: Products = "exact"
) -> dict[str, Contributions]:
    """Contributions of every step of every stage to several behaviours, in one sweep.

    A step costs one gradient, and 2 more for each behaviour with exact products, 1 with finite
    differences (`HessianProducts`). A sparse record adds the gradients of `checkpointing`.

    Args:
        context: of the estimates; its progress is told of every step, last step first.
        slopes: grad gamma at theta_K per behaviour and parameter; a missing parameter has none.
        products: how Hessian-vector products are computed.

    Raises:
        UnsupportedError: if the optimizer or the model has no derivative that is needed: optimizers
            without an `UpdateRule`, floating buffers that training changes (BatchNorm), an operation
            without a second derivative (exact products), less than single precision (finite
            differences).
        EstimationError: if a stage was recorded without its steps, its code fails, or there is no
            behaviour.
    """
    if not slopes:
        raise EstimationError("the adjoint needs a behaviour", "give the slope of at least one")
    rerun, stages = context.engine, context.record.stages
    require_derivatives(stages, gated=True)
    require_known_steps(rerun, gated=True)
    began, before = time.perf_counter(), rerun.gradients
    rerun.enter(stages[-1])
    costate = Costate(
        len(slopes),
        {
            n: torch.stack([one[n].to(p) if n in one else torch.zeros_like(p) for one in slopes.values()])
            for n, p in named_parameters(rerun.model).items()
        },
    )  # fmt: skip
    terms: dict[str, Tensor] = {}
    hessian, total = HessianProducts(rerun, products), sum(len(stage.steps) for stage in stages)
    following = context.progress.phase("following the behaviours back", total)
    with following as told, rerun.training():
        for stage in reversed(stages):
            terms[stage.id] = _stage_back(rerun, stage, costate, hessian, told)
            costate.cross(stage)
    # one counter counts evaluations, the other counts products; finite differences are in both
    evaluations = rerun.gradients - before
    cost = evaluations + (hessian.gradients if products == "exact" else 0)
    seconds = time.perf_counter() - began
    return {
        behavior: Contributions(
            behavior,
            {stage.id: terms[stage.id][row].numpy() for stage in stages},
            cost / len(slopes),
            seconds / len(slopes),
        )
        for row, behavior in enumerate(slopes)
    }


def _stage_back(
    rerun: Engine,
    stage: StageTrajectory,
    costate: Costate,
    hessian: HessianProducts,
    told: Advance,
) -> Tensor:
    """Take lambda from a stage's end to its start; give lambda_{k+1} . u_k, [n, steps]."""
    steps = rerun.steps_of(stage)
    rerun.enter(stage)
    for name, p in named_parameters(rerun.model).items():
        costate.theta.setdefault(name, p.new_zeros((costate.count, *p.shape)))

    def advance(k: int, state: State) -> State:
        optimizer = rerun.optimizer(stage)
        restore(state, rerun.model, optimizer)
        rerun.update(rerun.gradient(stage, steps[k], optimizer))
        return capture(rerun.model, optimizer)

    longest = most_states(sum(s.header.steps for s in rerun.trajectory.stages))
    terms = [torch.zeros(costate.count, 0, dtype=torch.float64)]
    for k, state in backwards(stage.state_steps, stage.state, advance, longest):
        optimizer = rerun.optimizer(stage)
        restore(state, rerun.model, optimizer)
        step_gradient = hessian.step_gradient(stage, steps[k], optimizer)
        terms.append(costate.step_back(step_gradient, hessian)[:, None])
        told(1)
    return torch.cat(terms[::-1], 1)


def _products(rows: Tensor, u: Tensor) -> Tensor:
    """<row, u> of each row, [n], in float64 on the CPU."""
    return (rows * u).reshape(len(rows), -1).sum(1).double().cpu()
