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

    (a_theta, a_s, a_g) = dU(theta, s, g; h)^T lambda'       by hand, `steps.pull_back`
    lambda_theta = a_theta + H_k C^T a_g,  lambda_s = a_s    C the Jacobian of clipping

At a `reset` boundary lambda_s becomes 0, at a `carry` boundary it crosses. A parameter that a stage
froze after an earlier one moved it gains its part of H_k C^T a_g, and steps no further.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditspec.engine.flat_parameters import joined
from auditspec.engine.hessian_products import HessianProducts, Products, along, clip_tangent
from auditspec.engine.rerun import Rerun, StepGradient
from auditspec.errors import EstimationError
from auditspec.estimator.linear.checkpointing import backwards, held_states
from auditspec.estimator.linear.points import Block, Point, Points, reached_by
from auditspec.estimator.linear.stretch import LinearizedStep, Stretch
from auditspec.estimator.linear.taped import TapedPasses
from auditspec.estimator.requirements import require_derivatives
from auditspec.estimator.steps import Slots, pull_back
from auditspec.record.state import named_parameters
from auditspec.record.trajectory import StageTrajectory, Step

Visit = Callable[[StageTrajectory, Step], None]
READ_OFF_TOLERANCE = 100
"""A gradient read off the moments stands for one computed here if they agree to so many units of
rounding; it would not if the run was made on another kind of machine."""


@dataclass(frozen=True)
class Contributions:
    """What every step of training contributed to one behaviour, to first order."""

    behavior: str
    steps: dict[str, NDArray[np.float64]]
    """Per stage, [steps]: lambda_{k+1} . u_k in units of gamma; the sum over a stage is its linear
    effect, gamma(theta_K) - gamma(theta_K without the stage)."""
    products: Products
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
    """[n, *shape] per parameter; a missing one is zero, or needed no more."""
    s: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """[n, *shape] per slot and parameter; a missing one is zero."""

    def cross(self, stage: StageTrajectory) -> None:
        """Go back over the boundary before a stage.

        A fresh optimizer owes nothing to the last. Where the model was changed, what was carried
        goes by its old name, joined by its copies, and what was added ends: its initial value owes
        nothing to training.
        """

        def back(held: dict[str, Tensor], origin: Mapping[str, str]) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for new, old in origin.items():
                if new in held:
                    found[old] = found[old] + held[new] if old in found else held[new]
            return found

        self.theta = back(self.theta, stage.origin)
        carry = stage.header.boundary == "carry"
        self.s = {s: back(held, stage.survivors) for s, held in self.s.items()} if carry else {}


def adjoint(
    rerun: Rerun,
    slopes: Mapping[str, Mapping[str, Tensor]],
    *,
    products: Products = "exact",
    visit: Visit | None = None,
) -> dict[str, Contributions]:
    """Contributions of every step of every stage to several behaviours, in one sweep.

    Exact products cost about 3 gradients a step for the first behaviour and 2 for each further one,
    finite differences 1 each (one more where the moments do not hold the step's gradient: SGD
    without momentum, clipping, another precision or machine than the record's). A sparse record
    adds the gradients of `checkpointing`.

    Args:
        rerun: the record, in the precision of the estimate.
        slopes: grad gamma at theta_K per behaviour and parameter; a missing parameter has none.
        products: how Hessian-vector products are computed.
        visit: called at every step with its stage (for progress), last step first.

    Raises:
        UnsupportedError: if the optimizer or the model has no derivative that is needed: optimizers
            other than SGD, Adam, AdamW, floating buffers that training changes (BatchNorm), an
            operation without a second derivative (exact products), less than single precision
            (finite differences).
        EstimationError: if a stage was recorded without its steps, its code fails, or there is no
            behaviour.
    """
    if not slopes:
        raise EstimationError("the adjoint needs a behaviour", "give the slope of at least one")
    stages = rerun.trajectory.stages
    require_derivatives(stages, gated=True)
    began, before = time.perf_counter(), rerun.gradients
    rerun.enter(stages[-1])
    costate = Costate(
        len(slopes),
        {
            n: torch.stack([one[n].to(p) if n in one else torch.zeros_like(p) for one in slopes.values()])
            for n, p in named_parameters(rerun.model).items()
        },
    )  # fmt: skip
    found: dict[str, Tensor] = {}
    hessian = HessianProducts(rerun, products)
    with rerun.training():
        for stage in reversed(stages):
            found[stage.id] = _StageSweep(rerun, stage, hessian).back(costate, visit)
            costate.cross(stage)
    # one counter counts evaluations, the other counts products; finite differences are in both
    evaluations = rerun.gradients - before
    cost = evaluations + (hessian.gradients if products == "exact" else 0)
    seconds = time.perf_counter() - began
    return {
        behavior: Contributions(
            behavior,
            {stage.id: found[stage.id][row].numpy() for stage in stages},
            products,
            cost / len(slopes),
            seconds / len(slopes),
        )
        for row, behavior in enumerate(slopes)
    }


@dataclass(frozen=True)
class _Gradient:
    """g_k of a step."""

    step_gradient: StepGradient
    """For its products; without gradients of its own where g was read off."""
    g: Tensor
    """[P], before clipping; 0 where the loss does not reach."""
    reached: Container[str]
    """The parameters that it reaches."""


class _StageSweep:
    """One stage, backwards."""

    def __init__(self, rerun: Rerun, stage: StageTrajectory, hessian: HessianProducts) -> None:
        self.stage, self.hessian = stage, hessian
        self.differences = hessian.kind == "finite-difference"
        self.points = Points(rerun, stage, keep_gradients=self.differences)
        self.layout = self.points.layout
        self.stretch = Stretch(self.points)
        useful = self.differences or self.points.passes is not None
        may = useful and stage.header.clip_norm is None
        self.reads_off: bool | None = None if may else False
        """Whether the moments give gradients like ours; None until it was tried in this stage."""
        self.untested = torch.ones_like(self.points.memory.theta)
        """[P], 0 at those that the steps so far (the later ones) were found not to use; else 1."""
        self.closed = 0
        """How many entries were unused when all of them were tested last; earlier there are no fewer."""
        self.held = held_states(sum(s.header.steps for s in rerun.trajectory.stages))

    def back(self, costate: Costate, visit: Visit | None) -> Tensor:
        """Take lambda from the stage's end to its start; give lambda_{k+1} . u_k, [n, steps]."""
        n = costate.count
        theta = self.layout.rows(costate.theta, n)
        s = {slot: self.layout.rows(held, n) for slot, held in costate.s.items()}
        points, terms = self.points, []
        if not points.steps:
            return torch.zeros(n, 0, dtype=torch.float64)
        after = points.read(len(points.steps))
        with points.memory:
            for stretch in backwards(
                self.stage.state_steps, points.read, points.advance, self.held, points.together
            ):
                for local in self._locals([k for k, _ in stretch], [x for _, x in stretch], after):
                    points.restore(local.point)
                    term, theta, s = self._step(self._gradient(local), local, theta, s)
                    terms.append(term)
                    if visit is not None:
                        visit(self.stage, local.step)
                after = stretch[0][1]
        costate.theta = self.layout.split(theta)
        costate.s = {slot: self.layout.split(held) for slot, held in s.items()}
        return torch.stack(terms[::-1], 1).double().cpu()

    def _locals(self, ks: list[int], states: list[Point], after: Point) -> list[LinearizedStep]:
        """Consecutive steps, the last first."""
        steps = [self.points.steps[k] for k in ks]
        return self.stretch(
            steps, [*states, after], self.points.group, read_off=self.reads_off is not False
        )[::-1]

    def _step(
        self, gradient: _Gradient, local: LinearizedStep, theta: Tensor, s: Slots
    ) -> tuple[Tensor, Tensor, Slots]:
        """One step back: lambda_{k+1} . u_k, [n], and lambda_k = J_k^T lambda_{k+1}, [n, P]."""
        g, clipped = gradient.g, self.points.clipped(gradient.g)
        local = self._made(local, clipped, gradient.reached)
        term = theta @ local.u
        for slot, held in s.items():
            if slot in local.u_s:  # else momentum that this stage leaves as it is
                term += held @ local.u_s[slot]
        parts = [
            self._pull_back(
                local,
                block,
                slopes,
                clipped,
                theta,
                {slot: held[:, block.at] for slot, held in s.items()},
            )
            for block, slopes in zip(local.blocks, local.slopes, strict=True)
        ]
        w = joined([g_bar for _, _, g_bar in parts])
        if self.stage.header.clip_norm is not None:
            w = clip_tangent({"": g}, {"": w}, self.stage.header.clip_norm)[1][""]
        product = self._product(gradient, local, w)
        slots = {slot for _, held, _ in parts for slot in held}
        return (
            term,
            product.add_(joined([part for part, _, _ in parts])),
            {
                slot: joined(
                    [held[slot] if slot in held else torch.zeros_like(w) for w, held, _ in parts]
                )
                for slot in slots
            },
        )

    def _made(self, local: LinearizedStep, g: Tensor, reached: Container[str]) -> LinearizedStep:
        """A step as its gradient tells it, where the states around it do not.

        They do not at the end of a window that was made again, where they were kept in another
        precision than ours, or where the loss does not reach a parameter, which torch.optim then
        leaves as it is.
        """
        if local.told and all(n in reached for n in self.points.group):
            return local
        after = local.after
        if not local.told:
            after = self.points.after(local.step, local.point, g, reached)
        (made,) = self.stretch([local.step], [local.point, after], reached)
        return made

    def _pull_back(
        self, local: LinearizedStep, block: Block, slope: Slots, g: Tensor, theta: Tensor, s: Slots
    ) -> tuple[Tensor, Slots, Tensor]:
        """lambda_theta, lambda_s, and lambda_g of a block, of those behind its step."""
        behind = theta[:, block.at]
        if block.group is None:
            return behind, s, torch.zeros_like(behind)
        return pull_back(
            self.stage.header.optimizer,
            slope,
            local.point.theta[block.at],
            g[block.at],
            block.count,
            local.step.groups[block.group],
            behind,
            s,
        )

    def _product(self, gradient: _Gradient, local: LinearizedStep, w: Tensor) -> Tensor:
        """H_k w, [n, P].

        Where Adam's second moment is 0 (an embedding row not used so far), w is up to 1 / eps as
        large as elsewhere and would set the length of a finite difference alone, though H is mostly 0
        there. That part is differenced on its own, centrally: exactly 0, bit for bit, where the step
        uses none of it. What was unused at one step is not differenced again at the steps before it,
        at which no gradient had reached it either.
        """
        if not self.differences:
            if self.points.passes is not None and not gradient.step_gradient.gradients:
                return self._taped(self.points.passes, local.step, w)
            return self.layout.rows(
                self.hessian(gradient.step_gradient, self.layout.split(w)), len(w)
            )
        if local.used is None:
            return self._differences(gradient, local.point, w)
        usual = w * local.used
        product = self._differences(gradient, local.point, usual)
        if local.unused == self.closed:
            return product
        odd = (w - usual).mul_(self.untested)
        if odd.count_nonzero():
            apart = self._differences(gradient, local.point, odd, central=True)
            if apart.count_nonzero():
                return product + apart
            self.untested *= odd.eq(0).all(0)
        if not ((1 - local.used) * self.untested).count_nonzero():
            self.closed = local.unused
        return product

    def _taped(self, passes: TapedPasses, step: Step, w: Tensor) -> Tensor:
        """H_k w, [n, P], exactly, at a step whose gradient was read off."""
        leaves = [self.points.parameters[n] for n in self.layout.names]
        directions = [*self.layout.split(w).values()]
        self.hessian.gradients += 2 * len(w) * len(step.batches)
        total = torch.zeros_like(w)
        for microbatch in step.batches:
            found = passes.products(microbatch, leaves, directions)
            total += torch.cat([cast(Tensor, part).reshape(len(w), -1) for part in found], 1)
        return total

    def _differences(
        self, gradient: _Gradient, point: Point, w: Tensor, *, central: bool = False
    ) -> Tensor:
        step_gradient, g = gradient.step_gradient, gradient.g
        if step_gradient.frozen_gradients:
            g = self.layout.vector(along(step_gradient))
        return self.hessian.differences(
            step_gradient,
            point.theta,
            g,
            w,
            self.points.memory,
            central=central,
            passes=self.points.passes,
        )

    def _gradient(self, local: LinearizedStep) -> _Gradient:
        """The gradient of a step: computed, or read off the moments if that is as good."""
        stage, step, optimizer = self.stage, local.step, self.points.optimizer
        read = local.g if local.point.step_gradient is None else None
        if read is not None and self.reads_off:
            step_gradient = StepGradient(
                step, stage, optimizer, self.points.parameters, {}, math.nan
            )
            return _Gradient(step_gradient, read, self.points.group.keys())
        step_gradient = local.point.step_gradient or self.hessian.step_gradient(
            stage, step, optimizer
        )
        g = self.layout.vector(step_gradient.gradients)
        if read is not None and self.reads_off is None:
            unit = torch.finfo(g.dtype).eps / 2
            apart = (g - read).norm()
            self.reads_off = bool(apart <= READ_OFF_TOLERANCE * unit * g.norm())
        return _Gradient(step_gradient, g, reached_by(step_gradient))
