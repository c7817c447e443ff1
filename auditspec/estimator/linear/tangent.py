"""Tangents of training: `first-order` and `displacement`, in one forward sweep along the record.

With xi = (theta, s), one step xi_{k+1} = f_k(xi_k) and J_k = d f_k / d xi at the recorded state:

- first-order (arXiv 2506.00175, AA-Score; here with the moments): the stage's own updates are
  removed infinitesimally, delta_a = 0, delta_{k+1} = J_k delta_k - u_k for k in S with
  u_k = xi_{k+1} - xi_k, and delta_{k+1} = J_k delta_k afterwards;
- displacement: the stage's displacement at its end is known exactly, delta_b = xi_a - xi_b, and
  only the later stages are linearised.

At a `reset` boundary the moments start anew in both worlds, so their part of delta becomes 0; at a
`carry` boundary it crosses. Counters (Adam's step) are not part of xi.

J_k delta_k costs one Hessian-vector product a direction, exact or by finite differences: with
g' = H_k delta_theta (after clipping), (delta_theta, delta_s)' is the derivative of the update map U
at (theta, s, g) in the direction (delta_theta, delta_s, g').
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from auditspec.engine.clipping import clip, clip_tangent
from auditspec.engine.hessian_products import HessianProducts, Products
from auditspec.engine.optimizers import rule_of
from auditspec.engine.optimizers.interface import Slots
from auditspec.engine.rerun import Rerun, StepGradient
from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.requirements import require_derivatives, require_known_steps
from auditspec.record.extension import carried
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory

TangentMethod = Literal["first-order", "displacement"]


@dataclass
class Directions:
    """delta_k of several stages at one step; rows follow `stages`."""

    stages: list[str] = field(default_factory=list)
    theta: dict[str, Tensor] = field(default_factory=dict)
    """[n, *shape] per parameter."""
    s: dict[str, Slots] = field(default_factory=dict)
    """[n, *shape] per parameter and slot; a missing slot is zero."""

    def add(self, stage: str, theta: Mapping[str, Tensor], s: Mapping[str, Slots]) -> None:
        """Append a row."""
        n = len(self.stages)
        self.stages.append(stage)
        for name, row in theta.items():
            old = self.theta.get(name, row.new_zeros((0, *row.shape)))
            self.theta[name] = torch.cat([old, row[None]])
        for name, row in theta.items():
            held, new = self.s.setdefault(name, {}), s.get(name, {})
            for slot in held.keys() | new.keys():
                old = held.get(slot, row.new_zeros((n, *row.shape)))
                held[slot] = torch.cat([old, new.get(slot, torch.zeros_like(row))[None].to(old)])

    def reset_moments(self) -> None:
        """A fresh optimizer in both worlds: delta_s = 0."""
        self.s = {}

    def cross(self, stage: StageTrajectory, model: nn.Module) -> None:
        """Go on to a changed model: copies move with their source, and delta is 0 for what it added."""
        if not self.stages:
            return
        n, old = len(self.stages), carried(self.theta, stage.origin)
        self.theta = {
            name: old[name] if name in old else torch.zeros_like(p).expand(n, *p.shape).clone()
            for name, p in model.named_parameters()
        }
        self.s = carried(self.s, stage.survivors)

    def state(self) -> State:
        """The rows as a state, to be noted."""
        return State(self.theta, {}, self.s)

    @classmethod
    def of(cls, stages: list[str], noted: State, device: torch.device) -> Directions:
        """What `state` gave, on a device."""
        theta = {n: rows.to(device) for n, rows in noted.parameters.items()}
        s = {
            n: {k: v.to(device) for k, v in held.items()}
            for n, held in noted.optimizer_state.items()
        }
        return cls(stages, theta, s)


def sweep(
    rerun: Rerun,
    final: State,
    methods: Mapping[str, TangentMethod],
    visit: Callable[[StepGradient], None] | None = None,
    *,
    products: Products = "exact",
    journal: Journal = NO_JOURNAL,
) -> dict[str, Counterfactual]:
    """Counterfactuals of several stages in one pass along the recorded trajectory.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K.
        methods: the stages to leave out, each with its method.
        visit: called at every step of the pass (for progress).
        products: exact Hessian-vector products, or finite differences of gradients, which cost 1
            gradient a direction in place of 2 and need no second derivative of the model.
        journal: where the directions are noted at recorded states; what it holds already is gone
            on from.

    Raises:
        UnsupportedError: if the optimizer or the model has no derivative that is needed: optimizers
            without an `UpdateRule`, floating buffers that training changes (BatchNorm), and for
            finite differences less than single precision.
        EstimationError: if a stage was recorded without its steps, or its code fails.
    """
    gated = "first-order" in methods.values()
    require_derivatives(rerun.trajectory.stages, gated=gated)
    require_known_steps(rerun, gated=gated)
    directions = Directions()
    cost: dict[str, float] = dict.fromkeys(methods, 0.0)
    seconds: dict[str, float] = dict.fromkeys(methods, 0.0)
    first, step = 0, 0
    noted = journal.load()
    if noted is not None:
        position, states = noted
        first, step = position["stage"], position["step"]
        cost, seconds = position["cost"], position["seconds"]
        directions = Directions.of(position["rows"], states["delta"], rerun.device)
    product = 2 if products == "exact" else 1
    hessian = HessianProducts(rerun, products)
    for index, stage in enumerate(rerun.trajectory.stages[first:], first):
        method = methods.get(stage.id)
        if not step:
            _begin(rerun, index, directions, gated=method == "first-order")
        if directions.stages:
            row = len(directions.stages) - 1 if method == "first-order" else None
            n, kept = len(directions.stages), set(stage.state_steps)
            began = time.perf_counter()
            for step_gradient in rerun.walk(stage, step, create_graph=products == "exact"):
                advance(step_gradient, directions, hessian, row)
                for name in directions.stages:
                    cost[name] += (1 / n + product) * len(step_gradient.step.batches)
                    seconds[name] += (time.perf_counter() - began) / n
                began, at = time.perf_counter(), step_gradient.step.index + 1
                if visit is not None:
                    visit(step_gradient)
                if at in kept and journal.due:
                    position = {
                        "stage": index,
                        "step": at,
                        "rows": directions.stages,
                        "cost": cost,
                        "seconds": seconds,
                    }
                    journal.save(position, {"delta": directions.state()})
        step = 0
        if method == "displacement":
            theta, s = _displacement(rerun, index)
            directions.add(stage.id, theta, s)
    return {
        stage_id: _counterfactual(
            stage_id,
            methods[stage_id],
            directions,
            row,
            final,
            cost[stage_id],
            seconds[stage_id],
        )
        for row, stage_id in enumerate(directions.stages)
    }


def _begin(rerun: Rerun, index: int, directions: Directions, *, gated: bool) -> None:
    """Take the directions over a stage's first boundary; a gated stage gets its own, of zeros."""
    stage = rerun.trajectory.stages[index]
    if stage.header.boundary == "reset":
        directions.reset_moments()
    rerun.enter(stage)
    if index and stage.header.extend is not None:
        directions.cross(stage, rerun.model)
    if gated:
        zero = {n: torch.zeros_like(p) for n, p in rerun.model.named_parameters()}
        directions.add(stage.id, zero, {})


def advance(
    step_gradient: StepGradient,
    directions: Directions,
    hessian: HessianProducts,
    gated: int | None = None,
) -> None:
    """One step of every direction, in place: delta := J_k delta, minus u_k in row `gated`.

    Raises:
        UnsupportedError: for an optimizer or an operation without the derivative.
    """
    header = step_gradient.stage.header
    products = hessian(step_gradient, directions.theta)
    g = {n: t.detach() for n, t in step_gradient.gradients.items() if t is not None}
    g_dot = clip_tangent(g, {n: products[n] for n in g}, header.clip_norm)
    clipped, n = clip(g, header.clip_norm), len(directions.stages)
    for group, h in zip(header.groups, step_gradient.step.groups, strict=True):
        rule = rule_of(header.optimizer, h)
        for name in group.parameters:
            if name not in g:
                continue  # torch.optim leaves a parameter without a gradient as it is
            theta = step_gradient.parameters[name].detach()
            s, steps_made = rule.read(step_gradient.optimizer_state(name), theta, h)
            zeros = theta.new_zeros((n, *theta.shape))
            s_dot = {slot: directions.s.get(name, {}).get(slot, zeros) for slot in s}
            (theta_next, s_next), (theta_dot, s_dot) = rule.push_forward(
                (theta, s, clipped[name]),
                (directions.theta[name], s_dot, g_dot[name]),
                steps_made,
                h,
            )
            if gated is not None:
                theta_dot[gated] -= theta_next - theta
                for slot, value in s_next.items():
                    s_dot[slot][gated] -= value - s[slot]
            directions.theta[name] = theta_dot
            directions.s[name] = s_dot


def _displacement(rerun: Rerun, index: int) -> tuple[dict[str, Tensor], dict[str, Slots]]:
    """delta_b = xi_a - xi_b at a stage's end; the moments matter only if the next stage carries them."""
    stage = rerun.trajectory.stages[index]
    rerun.enter(stage)
    first, last = stage.first, stage.last
    parameters = dict(rerun.model.named_parameters())
    theta = {
        n: (first.parameters[n].double() - last.parameters[n].double()).to(p)
        for n, p in parameters.items()
    }
    later = rerun.trajectory.stages[index + 1 : index + 2]
    if not later or later[0].header.boundary == "reset":
        return theta, {}
    s: dict[str, Slots] = {}
    for group in stage.groups:
        rule = rule_of(stage.header.optimizer, group.options)
        for name in group.parameters:
            p = parameters[name].detach()
            ends = [
                rule.read(state.optimizer_state.get(name, {}), p, group.options)[0]
                for state in (first, last)
            ]
            s[name] = {
                slot: (ends[0][slot].double() - ends[1][slot].double()).to(p) for slot in ends[0]
            }
    return theta, s


def _counterfactual(
    stage: str,
    method: TangentMethod,
    directions: Directions,
    row: int,
    final: State,
    gradients: float,
    seconds: float,
) -> Counterfactual:
    delta = {n: rows[row].cpu() for n, rows in directions.theta.items()}
    parameters = {n: final.parameters[n].to(d) + d for n, d in delta.items()}
    return Counterfactual(
        arm=Arm.without(stage),
        method=method,
        exact=False,
        state=State(parameters, final.buffers),
        delta=delta,
        gradients=gradients,
        seconds=seconds,
    )
