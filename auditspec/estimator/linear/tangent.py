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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from auditspec.engine.clipping import clip, clip_tangent
from auditspec.engine.hessian_products import HessianProducts, Products
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.optimizers import rule_of
from auditspec.engine.optimizers.interface import Slots
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals
from auditspec.estimator.forecast import gradients_of, state_bytes
from auditspec.estimator.interface import Context, Estimator, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.requirements import (
    refuse_carried_counters,
    require_derivatives,
    require_known_steps,
)
from auditspec.messages import message
from auditspec.progress import Advance
from auditspec.record.extension import carried
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory


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
            rows, new = self.s.setdefault(name, {}), s.get(name, {})
            for slot in rows.keys() | new.keys():
                old = rows.get(slot, row.new_zeros((n, *row.shape)))
                rows[slot] = torch.cat([old, new.get(slot, torch.zeros_like(row))[None].to(old)])

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
            n: {k: v.to(device) for k, v in rows.items()}
            for n, rows in noted.optimizer_state.items()
        }
        return cls(stages, theta, s)


class _Tangent(Estimator):
    """Displacements of several stages, carried along the record in one forward sweep."""

    several = False
    independent = True
    gated: ClassVar[bool]
    """Whether a stage's own steps are crossed too, its updates removed on the way."""
    products: Products

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """Steps, data, and the derivatives of every step that is crossed."""
        what = "second derivatives, and an optimizer with an update map"
        stages = record.stages
        return (
            *super().requirements(record, arms, terms),
            Requirement(what, lambda: self._require_derivatives(stages)),
        )

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """One gradient a crossed step, which the directions share, and each direction's own product."""
        places = {arm: record.index(arm.stage) for arm in arms}
        shares = dict.fromkeys(places, 0.0)
        for j, crossed in enumerate(record.stages):
            active = [arm for arm, i in places.items() if i < j or (i == j and self.gated)]
            for arm in active:
                shares[arm] += gradients_of(crossed) * (1 / len(active) + self._product)
        weights, moments = state_bytes(record)
        return Forecast(
            {arm: round(share, 3) for arm, share in shares.items()},
            gradients=sum(round(share, 3) for share in shares.values()),
            memory=(len(places) + 3) * (weights + moments),
            disk=2 * weights * len(places) + len(places) * (weights + moments),
        )

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals, in one pass along the recorded trajectory.

        Its journal notes the directions at recorded states.

        Raises:
            UnsupportedError: if the optimizer or the model has no derivative that is needed: optimizers
                without an `UpdateRule`, floating buffers that training changes (BatchNorm), and for
                finite differences less than single precision.
            EstimationError: if a stage was recorded without its steps, or its code fails.
        """
        stages = context.record.stages
        require_derivatives(stages, gated=self.gated)
        require_known_steps(context.engine, gated=self.gated)
        omitted = [arm.stage for arm in arms]
        total = sum(len(stage.steps) for stage in stages[0 if self.gated else 1 :])
        with context.progress.phase("following the stages' displacements", total) as told:
            sweep = _Sweep(context, self, omitted)
            sweep.run(told)
        final, rows = context.run.final, sweep.directions.stages
        return {arm: self._counterfactual(arm, sweep, rows.index(arm.stage), final) for arm in arms}

    @property
    def _product(self) -> int:
        """Gradients that a Hessian-vector product costs beside its gradient."""
        return 2 if self.products == "exact" else 1

    def _require_derivatives(self, stages: Sequence[StageTrajectory]) -> None:
        require_derivatives(stages, gated=self.gated)

    def _counterfactual(self, arm: Arm, sweep: _Sweep, row: int, final: State) -> Counterfactual:
        delta = {n: rows[row].cpu() for n, rows in sweep.directions.theta.items()}
        parameters = {n: final.parameters[n].to(d) + d for n, d in delta.items()}
        return Counterfactual(
            arm=arm,
            method=self.name,
            exact=False,
            state=State(parameters, final.buffers),
            delta=delta,
            gradients=sweep.cost[arm.stage],
            seconds=sweep.seconds[arm.stage],
            linear_reading=self.gated,
        )


@dataclass(frozen=True)
class FirstOrder(_Tangent):
    """The stage's own updates are removed infinitesimally (arXiv 2506.00175, AA-Score)."""

    products: Products = "exact"
    """Exact Hessian-vector products, or finite differences of gradients, which cost 1 gradient a direction
    in place of 2 and need no second derivative of the model."""

    name = "first-order"
    title = "First-order"
    words = message("first-order-does")
    gated = True


@dataclass(frozen=True)
class Displacement(_Tangent):
    """The stage's displacement is known exactly; the later stages are linearised."""

    products: Products = "exact"
    """As for `FirstOrder`."""

    name = "displacement"
    title = "Displacement"
    words = message("displacement-does")
    gated = False

    def _require_derivatives(self, stages: Sequence[StageTrajectory]) -> None:
        super()._require_derivatives(stages)
        refuse_carried_counters(stages)


class _Sweep:
    """The directions of several stages on their way along the record."""

    def __init__(self, context: Context, estimator: _Tangent, omitted: Sequence[str]) -> None:
        self.context = context
        self.omitted = omitted
        self.gated = estimator.gated
        self.exact = estimator.products == "exact"
        self.product = estimator._product
        self.hessian = HessianProducts(context.engine, estimator.products)
        self.directions = Directions()
        self.cost = dict.fromkeys(omitted, 0.0)
        """Minibatch gradients, by stage."""
        self.seconds = dict.fromkeys(omitted, 0.0)

    def run(self, told: Advance) -> None:
        """Take every direction to the end of training, from where the journal has it."""
        rerun, first, step = self.context.engine, *self._go_on()
        for index, stage in enumerate(self.context.record.stages[first:], first):
            opens = self.gated and stage.id in self.omitted
            if not step:
                _begin(rerun, index, self.directions, gated=opens)
            if self.directions.stages:
                self._cross(index, step, len(self.directions.stages) - 1 if opens else None, told)
            step = 0
            if not self.gated and stage.id in self.omitted:
                self.directions.add(stage.id, *_displacement(rerun, index))

    def _cross(self, index: int, start: int, gated: int | None, told: Advance) -> None:
        """All steps of one stage from `start` on; row `gated` loses the stage's own updates."""
        stage, active = self.context.record.stages[index], self.directions.stages
        recorded = set(stage.state_steps)
        began = time.perf_counter()
        for step_gradient in self.context.engine.walk(stage, start, create_graph=self.exact):
            advance(step_gradient, self.directions, self.hessian, gated)
            for name in active:
                share = 1 / len(active) + self.product
                self.cost[name] += share * len(step_gradient.step.batches)
                self.seconds[name] += (time.perf_counter() - began) / len(active)
            began, at = time.perf_counter(), step_gradient.step.index + 1
            told(1)
            if at in recorded and self.context.journal.due:
                self._note(index, at)

    def _note(self, stage: int, step: int) -> None:
        position = {
            "stage": stage,
            "step": step,
            "rows": self.directions.stages,
            "cost": self.cost,
            "seconds": self.seconds,
        }
        self.context.journal.save(position, {"delta": self.directions.state()})

    def _go_on(self) -> tuple[int, int]:
        """Take up what was noted: the stage, and the steps behind."""
        noted = self.context.journal.load()
        if noted is None:
            return 0, 0
        position, states = noted
        self.cost, self.seconds = position["cost"], position["seconds"]
        device = self.context.engine.device
        self.directions = Directions.of(position["rows"], states["delta"], device)
        return position["stage"], position["step"]


def _begin(rerun: Engine, index: int, directions: Directions, *, gated: bool) -> None:
    """Take the directions over a stage's first boundary; a gated stage gets its own, of zeros."""
    stage = rerun.trajectory.stages[index]
    if stage.header.boundary != "carry":
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


def _displacement(rerun: Engine, index: int) -> tuple[dict[str, Tensor], dict[str, Slots]]:
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
    if not later or later[0].header.boundary != "carry":
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
