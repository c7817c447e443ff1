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

    (a_theta, a_s, a_g) = dU(theta, s, g; h)^T lambda'       by hand, `steps.update_vjp`
    lambda_theta = a_theta + H_k C^T a_g,  lambda_s = a_s    C the Jacobian of clipping

At a `reset` boundary lambda_s becomes 0, at a `carry` boundary it crosses.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.checkpointing import backwards
from auditspec.estimator.products import HessianProducts, Products, clip, clip_tangent
from auditspec.estimator.requirements import require_derivatives
from auditspec.estimator.steps import Slots, gradient_between, slots, update_vjp
from auditspec.record.rerun import Moment, Rerun
from auditspec.record.state import State, named_buffers, named_parameters
from auditspec.record.trajectory import StageTrajectory, Step

READ_OFF_TOLERANCE = 100
"""A gradient read off the moments stands for one computed here if they agree to so many units of
rounding; it would not if the run was made on another kind of machine."""
NOTHING = torch.empty(0)


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
    note: str | None
    """What a reader should know of how the products were computed, if anything."""

    def effect(self, stage: str) -> float:
        """The linear effect of a stage, > 0 if it raised gamma."""
        return float(self.steps[stage].sum())


@dataclass
class Costate:
    """lambda_k of several behaviours, one a row."""

    theta: dict[str, Tensor]
    """[n, *shape] per parameter."""
    s: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """[n, *shape] per slot and parameter; a missing one is zero."""

    def cross(self, boundary: str) -> None:
        """Go back over the boundary before a stage: a fresh optimizer owes nothing to the last."""
        if boundary == "reset":
            self.s = {}


def adjoint(
    rerun: Rerun,
    slopes: Mapping[str, Mapping[str, Tensor]],
    *,
    products: Products = "exact",
    visit: Callable[[Moment], None] | None = None,
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
        visit: called at every step (for progress), last step first.

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
    trained = _trained(rerun)
    costate = Costate(
        {
            n: torch.stack([one[n].to(p) if n in one else torch.zeros_like(p) for one in slopes.values()])
            for n, p in trained.items()
        }
    )  # fmt: skip
    found: dict[str, Tensor] = {}
    with HessianProducts(rerun, products) as hessian, rerun.training():
        for stage in reversed(stages):
            found[stage.id] = _StageSweep(rerun, stage, hessian).back(costate, visit)
            costate.cross(stage.header.boundary)
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
            hessian.note,
        )
        for row, behavior in enumerate(slopes)
    }


def _trained(rerun: Rerun) -> dict[str, nn.Parameter]:
    """The parameters that training changed; those that every stage froze stay where they are.

    Raises:
        UnsupportedError: naming the first stage that freezes parameters which another one trains:
            going back, their lambda needs a derivative that is not taken here.
    """
    stages = rerun.trajectory.stages
    always = set(stages[0].header.frozen)
    for stage in stages:
        if stage.header.extend is not None:
            raise UnsupportedError(
                f"stage '{stage.id}' changed the model; the adjoint does not go back across that",
                "use the tangent, or estimator.method: replay",
            )
        if set(stage.header.frozen) != always:
            raise UnsupportedError(
                f"stage '{stage.id}' freezes other parameters than the stages before; the adjoint does "
                "not follow that",
                "use the tangent, or estimator.method: replay",
            )
    return {n: p for n, p in named_parameters(rerun.model).items() if n not in always}


@dataclass(frozen=True)
class _Point:
    """xi_k in one vector a quantity, [P]; counters by position in the layout."""

    theta: Tensor
    s: Slots
    counts: tuple[int, ...]
    native: bool
    """Whether it was kept in the precision that we compute in."""


@dataclass(frozen=True)
class _Costate:
    """lambda_k in one vector a quantity, [n, P]; a missing slot is zero."""

    theta: Tensor
    s: Slots


class _StageSweep:
    """One stage, backwards.

    Parameters are laid out in one vector, group by group, the ones that the stage does not train at
    the end: updates are elementwise, and many small operations would cost more than one large one.
    """

    def __init__(self, rerun: Rerun, stage: StageTrajectory, hessian: HessianProducts) -> None:
        self.rerun, self.stage, self.hessian = rerun, stage, hessian
        self.held, self.buffers = named_parameters(rerun.model), named_buffers(rerun.model)
        self.parameters = _trained(rerun)
        groups = stage.header.groups
        self.group = {
            n: i for i, group in enumerate(groups) for n in group.parameters if n in self.parameters
        }
        self.names = [*self.group, *(n for n in self.parameters if n not in self.group)]
        self.sizes = [self.parameters[n].numel() for n in self.names]
        self.shapes = [self.parameters[n].shape for n in self.names]
        self.ends = [0, *itertools.accumulate(self.sizes)]
        self.optimizer: Optimizer = rerun.optimizer(stage)
        self.reads_off: bool | None = None
        """Whether the moments give gradients like ours; None until it was tried in this stage."""
        self.idle: Tensor | None = None
        """Entries, [P], that the steps so far (the later ones) were found not to use."""
        self.like = next(iter(self.parameters.values()), NOTHING).detach()
        self.lengths = torch.tensor(self.sizes, device=rerun.device)

    def back(self, costate: Costate, visit: Callable[[Moment], None] | None) -> Tensor:
        """Take lambda from the stage's end to its start; give lambda_{k+1} . u_k, [n, steps]."""
        n = len(next(iter(costate.theta.values())))
        lambda_ = _Costate(
            self._rows(costate.theta),
            {slot: self._rows(held, n) for slot, held in costate.s.items()},
        )
        terms: list[Tensor] = []
        after: _Point | None = None
        for step, state, state_after in backwards(self.rerun, self.stage):
            after = after or self._point(step, state_after)
            point = self._point(step, state)
            self._restore(state)
            moment = self._moment(step, point, after)
            term, lambda_ = self._step(moment, point, lambda_)
            terms.append(term)
            if visit is not None:
                visit(moment)
            after = point
        costate.theta = self._split(lambda_.theta)
        costate.s = {slot: self._split(held) for slot, held in lambda_.s.items()}
        if not terms:
            return torch.zeros(n, 0, dtype=torch.float64)
        return torch.stack(terms[::-1], 1).double().cpu()

    def _step(self, moment: Moment, point: _Point, lambda_: _Costate) -> tuple[Tensor, _Costate]:
        """One step back: lambda_{k+1} . u_k, [n], and lambda_k = J_k^T lambda_{k+1}."""
        gradients = {n: g.detach() for n, g in moment.gradients.items() if g is not None}
        g = self._flat(gradients)
        limit = self.stage.header.clip_norm
        clipped = g if limit is None else clip({"": g}, limit)[""]
        term = torch.zeros_like(lambda_.theta[:, 0])
        theta, g_bar, unseen = [], [], []
        s: dict[str, list[Tensor]] = {slot: [] for slot in lambda_.s.keys() | point.s.keys()}
        for start, stop, kind in self._blocks(gradients, point):
            at = slice(start, stop)
            behind = lambda_.theta[:, at]
            s_behind = {slot: held[:, at] for slot, held in lambda_.s.items()}
            if kind is None:  # torch.optim leaves a parameter without a gradient as it is
                theta_now, s_now, g_now = behind, s_behind, torch.zeros_like(behind)
                unseen.append(torch.zeros_like(g[at], dtype=torch.bool))
            else:
                h = moment.step.groups[kind[0]]
                held = {slot: point.s[slot][at] for slot in self._slots(h)}
                u, s_up, pull = update_vjp(
                    self.stage.header.optimizer, point.theta[at], held, clipped[at], kind[1], h
                )
                term += behind @ u
                for slot in s_up.keys() & s_behind.keys():
                    term += s_behind[slot] @ s_up[slot]
                theta_now, s_now, g_now = pull(behind, s_behind)
                if self.hessian.kind == "finite-difference":
                    unseen.append(self._unseen(held, s_up, clipped[at]))
            theta.append(theta_now)
            g_bar.append(g_now)
            for slot, parts in s.items():
                parts.append(s_now[slot] if slot in s_now else torch.zeros_like(behind))
        w = _joined(g_bar)
        if limit is not None:
            w = clip_tangent({"": g}, {"": w}, limit)[1][""]
        product = self._product(moment, w, _joined(unseen) if unseen else None)
        now = _Costate(
            _joined(theta) + product, {slot: _joined(parts) for slot, parts in s.items()}
        )
        return term, now

    @staticmethod
    def _unseen(held: Slots, up: Slots, g: Tensor) -> Tensor:
        """Where Adam's second moment is still 0 after the step, v' = 0."""
        if "exp_avg_sq" not in held:
            return torch.zeros_like(g, dtype=torch.bool)
        return held["exp_avg_sq"] + up["exp_avg_sq"] == 0

    def _product(self, moment: Moment, w: Tensor, unseen: Tensor | None) -> Tensor:
        """H_k w, [n, P].

        Where Adam's second moment is 0 (an embedding row not used so far), w is up to 1 / eps as
        large as elsewhere and would set the length of a finite difference alone, though H is mostly 0
        there. That part is differenced on its own, centrally: exactly 0, bit for bit, where the step
        uses none of it. What was unused at one step is not differenced again at the steps before it,
        at which no gradient had reached it either.
        """
        if self.hessian.kind == "exact" or unseen is None:
            return self._rows(self.hessian(moment, self._split(w)))
        odd = torch.where(unseen, w, 0)
        if not odd.any():
            return self._rows(self.hessian(moment, self._split(w)))
        product = self._rows(self.hessian(moment, self._split(w - odd)))
        fresh = odd if self.idle is None else torch.where(self.idle, 0, odd)
        if fresh.any():
            apart = self._rows(self.hessian(moment, self._split(fresh), central=True))
            if apart.any():
                return product + apart
            idle = fresh.ne(0).any(0)
            self.idle = idle if self.idle is None else self.idle | idle
        return product

    def _moment(self, step: Step, point: _Point, after: _Point) -> Moment:
        """The step with its gradient: computed, or read off the moments if that is as good."""
        if self.hessian.kind == "exact" or self.reads_off is False:
            return self.hessian.moment(self.stage, step, self.optimizer)
        read = self._read_off(step, point, after)
        if read is None:
            return self.hessian.moment(self.stage, step, self.optimizer)
        if self.reads_off is None:
            ours = self.hessian.moment(self.stage, step, self.optimizer)
            g, theirs = (self._flat(found) for found in (ours.gradients, read))
            unit = torch.finfo(g.dtype).eps / 2
            self.reads_off = bool((g - theirs).norm() <= READ_OFF_TOLERANCE * unit * g.norm())
            return ours
        gradients: dict[str, Tensor | None] = {n: read.get(n) for n in self.held}
        loss = float("nan") if step.loss is None else step.loss
        return Moment(step, self.stage, self.optimizer, self.held, gradients, loss)

    def _read_off(
        self, step: Step, point: _Point, after: _Point
    ) -> Mapping[str, Tensor | None] | None:
        """Every gradient of a step from the moments around it; None where they do not tell."""
        if self.stage.header.clip_norm is not None:
            return None
        if not (point.native and after.native):
            return None
        if any(b != a + 1 for a, b in zip(point.counts, after.counts, strict=True)) and not (
            self.stage.header.optimizer == "SGD" and set(point.counts) == set(after.counts) == {1}
        ):
            return None  # a parameter that this step's loss did not reach
        parts = []
        for start, stop, kind in self._blocks(self.parameters, point):
            if kind is None:
                return None  # the stage does not train it
            group, count = kind
            at, names = slice(start, stop), self._slots(step.groups[group])
            before, later = ({n: p.s[n][at] for n in names} for p in (point, after))
            read = gradient_between(
                self.stage.header.optimizer,
                step.groups[group],
                point.theta[at],
                before,
                later,
                count,
            )
            if read is None:
                return None
            parts.append(read)
        if self.stage.header.optimizer == "SGD" and self._stood_still(point, after):
            return None
        return dict(zip(self.names, self._views(torch.cat(parts)), strict=True))

    def _stood_still(self, point: _Point, after: _Point) -> bool:
        """Whether a momentum buffer is unchanged, as it is where the loss did not reach it."""
        change = (after.s["momentum_buffer"] - point.s["momentum_buffer"]).abs_()
        return bool((torch.segment_reduce(change, "max", lengths=self.lengths) == 0).any())

    def _blocks(
        self, reached: Mapping[str, object], point: _Point
    ) -> Iterator[tuple[int, int, tuple[int, int] | None]]:
        """(start, stop, (group, count)) of each stretch of parameters that step alike.

        None in place of group and count for those that the step leaves alone.
        """
        kinds = [
            (self.group[n], point.counts[i]) if n in reached and n in self.group else None
            for i, n in enumerate(self.names)
        ]
        first = 0
        for kind, run in itertools.groupby(kinds):
            last = first + len(list(run))
            yield self.ends[first], self.ends[last], kind
            first = last

    def _slots(self, h: Mapping[str, Any]) -> Iterable[str]:
        return slots(self.stage.header.optimizer, h, {}, NOTHING)[0]

    def _point(self, step: Step, state: State) -> _Point:
        held: dict[str, dict[str, Tensor]] = {}
        counts = []
        for name in self.names:
            if name not in self.group:
                counts.append(0)
                continue
            h = step.groups[self.group[name]]
            moments = state.moments.get(name, {})
            s, count = slots(self.stage.header.optimizer, h, moments, state.parameters[name])
            counts.append(count)
            for slot, value in s.items():
                held.setdefault(slot, {})[name] = value
        kept = state.parameters[self.names[0]].dtype if self.names else None
        return _Point(
            self._flat(state.parameters),
            {slot: self._flat(values) for slot, values in held.items()},
            tuple(counts),
            native=all(p.dtype == kept for p in self.parameters.values()),
        )

    def _restore(self, state: State) -> None:
        with torch.no_grad():
            for name, parameter in self.held.items():
                parameter.copy_(state.parameters[name])
            for name, buffer in self.buffers.items():
                buffer.copy_(state.buffers[name])

    def _flat(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """[P] of one tensor a parameter; zeros for a missing one."""
        device = next((t.device for t in tensors.values() if t is not None), self.like.device)
        parts = [
            torch.zeros(size, dtype=self.like.dtype, device=device)
            if (held := tensors.get(n)) is None
            else held.reshape(-1)
            for n, size in zip(self.names, self.sizes, strict=True)
        ]
        return torch.cat(parts).to(self.like)

    def _rows(self, rows: Mapping[str, Tensor], count: int = 0) -> Tensor:
        """[n, P] of [n, *shape] a parameter; `count` rows of zeros for a missing one."""
        return torch.cat(
            [
                rows[n].reshape(-1, size)
                if n in rows
                else self.parameters[n].new_zeros(count, size)
                for n, size in zip(self.names, self.sizes, strict=True)
            ],
            1,
        )

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        """[n, *shape] per parameter, of [n, P]."""
        parts = torch.split(rows, self.sizes, 1)
        return {
            n: part.reshape(-1, *shape)
            for n, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def _views(self, vector: Tensor) -> list[Tensor]:
        parts = zip(torch.split(vector, self.sizes), self.shapes, strict=True)
        return [part.view(shape) for part, shape in parts]


def _joined(parts: list[Tensor]) -> Tensor:
    """One vector of the blocks' parts, along the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
