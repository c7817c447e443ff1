"""Krylov: displacement carried across later stages by a few Hessian-vector products a stage.

    delta_b = xi_a - xi_b    known exactly, at the stage's own end
    delta_K                  later stages linearised, as for `displacement`

The curvature of a segment of a stage is held at one recorded state, so the segment is a function of
one symmetric matrix, A = P^(1/2) (+-H + Lambda) P^(1/2), and of the optimizer's scalars
(`recurrence.py`). Its action on delta is computed in the Krylov space of delta: with an orthonormal
basis Q that begins with delta and T = Q A Q^T (`lanczos.py`), the recurrence is carried out on the
eigenvalues of T (Ritz values) and mapped back (Saad 1992; Hochbruck & Lubich 1997 for exp). Delta
lies in the space, so no part of it is left over; what is neglected is what A's higher powers add.

All omitted stages cross a segment together, in the space of all their displacements. At a segment
border inside a stage, and at a `carry` boundary, the first moment's displacement crosses too and
is among the start vectors; at a `reset` boundary it becomes 0. A parameter that is displaced and
not trained keeps its displacement and acts through H as a constant force.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from auditspec.engine.interface import Engine
from auditspec.engine.optimizers import linear_rule_of
from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, norm
from auditspec.estimator.forecast import state_bytes
from auditspec.estimator.interface import Context, Estimator, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.curvature import CurvatureKind, Visit, curvature_at, mean_gradient
from auditspec.estimator.krylov.lanczos import lanczos
from auditspec.estimator.krylov.scaled_coordinates import Rows, ScaledCoordinates
from auditspec.estimator.krylov.segments import (
    Declared,
    Segment,
    minibatches_of,
    segments_of,
    steps_of,
    with_batch,
)
from auditspec.estimator.requirements import (
    refuse_carried_counters,
    require_derivatives,
    require_known_steps,
)
from auditspec.messages import message
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory, Step, Trajectory

MOST_COLUMNS = 3
"""Start vectors of one stage and group: delta, the first moment's displacement, a constant force."""


@dataclass(frozen=True)
class Krylov(Estimator):
    """Counterfactuals from sparse states, or from the stages' boundaries alone.

    `estimate` gives diagnostics of each arm (1, 0, and 0 for the last stage, whose delta is known):
    `growth`, ||delta_K|| / ||delta_b||; `truncation`, the largest relative change of delta over a segment's end
    between half of the basis and all of it; `nonlinearity`, the largest ||dg - H delta|| / ||dg|| with dg the
    change of the sample's gradient over delta.
    """

    vectors: int = 10
    """Hessian-vector products a segment, for each stage that crosses it; no fewer than 3 a parameter group."""
    examples: int = 512
    """Examples of a segment's curvature sample, in whole minibatches."""
    curvature: CurvatureKind = "positive"
    """`positive`, the Hessian with negative Ritz values taken as 0; `gauss-newton`, where the objective fits
    it; both with Ritz values beyond a step's stability limit brought within it. `hessian`, as it is: exact on
    quadratics; negative curvature grows exponentially."""
    segments: int = 1
    """Segments a stage, each with its own curvature."""

    name = "krylov"
    title = "Krylov"
    words = message("krylov-does")
    needs_steps = False

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """Learning rates, recorded or declared; data; and an optimizer whose recurrence is known."""
        stages = record.stages

        def known() -> None:
            for stage in stages[1:]:
                steps_of(stage, terms.declared.get(stage.id))

        def covered() -> None:
            require_derivatives(stages, gated=False)
            refuse_carried_counters(stages)
            for stage in stages[1:]:
                for group in stage.groups:
                    linear_rule_of(stage.header.optimizer, group.options)

        return (
            Requirement("the steps or the declared schedule of every later stage", known),
            *super().requirements(record, arms, terms),
            Requirement("an optimizer whose recurrence is known", covered),
        )

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """At most; an arm's share in proportion to its cost alone."""
        total = self._cost(record, arms, terms)
        alone = {arm: self._cost(record, [arm], terms) for arm in arms}
        whole = sum(alone.values()) or 1.0
        shares = {arm: round(total * cost / whole, 3) for arm, cost in alone.items()}
        weights, _ = state_bytes(record)
        return Forecast(
            shares,
            gradients=sum(shares.values()),
            memory=(len(shares) * (self.vectors + 3) + 3) * weights,
            disk=4 * weights * len(shares),
        )

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """What is declared of stages whose steps were not recorded."""
        return {
            "declared": {
                stage: asdict(known) | {"schedule": known.schedule.model_dump()}
                for stage, known in _used(context).items()
            }
        }

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals; all stages cross a segment together.

        Its journal notes the displacements after every stage.

        Raises:
            UnsupportedError: for optimizers without a `LinearRule`, floating buffers that
                training changes (BatchNorm), a boundary that carries a counter which leaving the stage
                out would change, hyperparameters that cannot be folded in, an operation without second
                derivative, and an objective that has no Gauss-Newton curvature.
            EstimationError: if a later stage has neither recorded nor declared steps, if its code fails,
                or if delta overflows.
            RecordError: if the record has no such stage.
        """
        stages, final, starts = context.record.stages, context.run.final, context.run.starts
        omitted = sorted((arm.stage for arm in arms), key=context.record.index)
        _refuse(stages, omitted)
        require_known_steps(context.engine, gated=False)
        declared = _used(context)
        with context.progress.phase("following the curvature") as told:
            sweep = _Sweep(context.engine, self, lambda s: told(len(s.step.batches)))
            first, noted = 0, context.journal.load()
            if noted is not None:
                first = sweep.go_on(*noted)
            for index, stage in enumerate(stages[first:], first):
                if stage.header.boundary != "carry":
                    sweep.nu = {n: torch.zeros_like(rows) for n, rows in sweep.nu.items()}
                if sweep.crossing:
                    sweep.cross(stage, declared.get(stage.id))
                if stage.id in omitted:
                    sweep.add(stage.id, *_displacement(stages, index, starts, final))
                if sweep.crossing:
                    context.journal.save(*sweep.note(index + 1))
        rows = {crossing.stage: row for row, crossing in enumerate(sweep.crossing)}
        return {arm: _counterfactual(arm, sweep, rows[arm.stage], final) for arm in arms}

    def _cost(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> float:
        """What the arms cost together at most, in minibatch gradients.

        A segment on which n stages cross takes, on its sample of G minibatches, one gradient, `vectors`
        products for each stage at 2 gradients a product, and one gradient for each stage's
        nonlinearity: G (1 + n (2 vectors + 1)).
        """
        places = [record.index(arm.stage) for arm in arms]
        total = 0
        for index, stage in enumerate(record.stages):
            n = sum(place < index for place in places)
            if n:
                known = terms.declared.get(stage.id)
                steps = steps_of(stage, known)
                for segment in _segments(stage, steps, known, self.segments, self.examples):
                    sample = sum(minibatches_of(steps[k]) for k in segment.sample)
                    total += sample * (1 + n * (2 * products_of(stage, self.vectors) + 1))
        return float(total)


def _used(context: Context) -> dict[str, Declared]:
    """What is declared of the stages whose steps were not recorded."""
    bare = [stage.id for stage in context.record.stages if not stage.steps]
    return {stage: context.declared[stage] for stage in bare if stage in context.declared}


@dataclass
class _Crossing:
    """One omitted stage on its way to the end of training."""

    stage: str
    start: float
    """||delta_b||"""
    gradients: float = 0.0
    seconds: float = 0.0
    truncation: float = 0.0
    nonlinearity: float = 0.0


class _Sweep:
    """Displacements of the omitted stages, carried from stage to stage."""

    def __init__(self, rerun: Engine, options: Krylov, visit: Visit) -> None:
        self.rerun = rerun
        self.vectors = options.vectors
        self.examples = options.examples
        self.kind: CurvatureKind = options.curvature
        self.segments = options.segments
        self.visit = visit
        self.crossing: list[_Crossing] = []
        self.theta: Rows = {}
        self.nu: Rows = {}

    def add(self, stage: str, theta: Mapping[str, Tensor], nu: Mapping[str, Tensor]) -> None:
        """A further omitted stage, at its end."""
        self.crossing.append(_Crossing(stage, norm(theta)))
        for rows, new in ((self.theta, theta), (self.nu, nu)):
            for name, row in new.items():
                row = row.to(self.rerun.device, self.rerun.dtype)[None]
                rows[name] = torch.cat([rows[name], row]) if name in rows else row

    def note(self, stage: int) -> tuple[dict[str, Any], dict[str, State]]:
        """What `go_on` needs to go on with a stage, by its index."""
        crossing = [asdict(c) for c in self.crossing]
        return {"stage": stage, "crossing": crossing}, {"delta": State(self.theta, self.nu)}

    def go_on(self, position: Mapping[str, Any], states: Mapping[str, State]) -> int:
        """Stand where `note` was made; gives the index of the stage to go on with."""
        self.crossing = [_Crossing(**facts) for facts in position["crossing"]]
        noted, device = states["delta"], self.rerun.device
        self.theta = {n: rows.to(device) for n, rows in noted.parameters.items()}
        self.nu = {n: rows.to(device) for n, rows in noted.buffers.items()}
        return int(position["stage"])

    def cross(self, stage: StageTrajectory, declared: Declared | None) -> None:
        """All steps of one stage."""
        steps = steps_of(stage, declared)
        for segment in _segments(stage, steps, declared, self.segments, self.examples):
            began = time.perf_counter()
            sampled = [steps[k] for k in segment.sample]
            if declared is not None and not stage.steps:
                sampled = [with_batch(s, stage, declared, self.rerun.datasets) for s in sampled]
            with self.rerun.training():
                torch.manual_seed(0)  # for assumed steps on a device with random numbers of its own
                cost = self._cross(stage, steps, segment, sampled)
            seconds = (time.perf_counter() - began) / len(self.crossing)
            for crossing, gradients in zip(self.crossing, cost, strict=True):
                crossing.gradients += gradients
                crossing.seconds += seconds

    def _cross(
        self,
        stage: StageTrajectory,
        steps: Sequence[Step],
        segment: Segment,
        sampled: Sequence[Step],
    ) -> list[float]:
        """One segment; gives each crossing stage's cost."""
        n, state = len(self.crossing), stage.state(segment.state)
        curvature = curvature_at(self.rerun, stage, state, sampled, self.kind, self.visit)
        scaled = ScaledCoordinates(stage, steps[segment.start : segment.stop], state, curvature)
        if not scaled.names:
            return [curvature.cost / n] * n
        y, nu = scaled.scale(self.theta), scaled.scale_moment(self.nu)
        products = n if scaled.displaces_others(self.theta) else 0
        force = scaled.force(self.theta) if products else torch.zeros_like(y)
        schedule = scaled.schedule(segment.start + _count_before(stage))
        size = products_of(stage, self.vectors) * n - products
        start = torch.cat([y, nu, force])
        space = lanczos(scaled.operator, start, size, scaled.parts(schedule))
        if not space.projected.isfinite().all():
            raise EstimationError(
                f"stage '{stage.id}': its curvature at step {segment.state} is not finite",
                "use estimator.method: replay",
            )
        stable, half = self.kind != "hessian", space.leading((len(space) + 1) // 2)
        y_end, nu_end = scaled.run(space, schedule, y, nu, force, stable=stable)
        y_half, _ = scaled.run(half, schedule, y, nu, force, stable=stable)
        change = space.image(space.coordinates(y)) - scaled.decay * y + force
        beyond = self._nonlinearity(scaled, stage, state, sampled, change)
        for i, crossing in enumerate(self.crossing):
            crossing.truncation = max(crossing.truncation, ratio(y_end[i] - y_half[i], y_end[i]))
            crossing.nonlinearity = max(crossing.nonlinearity, beyond[i])
        scaled.unscale(y_end, self.theta)
        scaled.unscale_moment(nu_end, self.nu)
        return [curvature.cost * (1 / n + 2 * (len(space) + products) / n + 1)] * n

    def _nonlinearity(
        self,
        scaled: ScaledCoordinates,
        stage: StageTrajectory,
        state: State,
        sampled: Sequence[Step],
        change: Tensor,
    ) -> list[float]:
        """||dg - H delta|| / ||dg|| in scaled coordinates, with dg from one more gradient at theta + delta."""
        before = scaled.scale_gradient(mean_gradient(scaled.curvature.step_gradients))
        optimizer, ratios = self.rerun.optimizer(stage), []
        for i, expected in enumerate(change):
            displaced = {
                n: p + self.theta[n][i].to(p.device, torch.float64) if n in self.theta else p
                for n, p in state.parameters.items()
            }
            restore(State(displaced, state.buffers), self.rerun.model, optimizer)
            step_gradients = [self.rerun.gradient(stage, step, optimizer) for step in sampled]
            dg = scaled.scale_gradient(mean_gradient(step_gradients)) - before
            ratios.append(ratio(dg - expected, dg))
        return ratios


def products_of(stage: StageTrajectory, vectors: int) -> int:
    """Products a segment for each crossing stage: no fewer than it may have start vectors."""
    return max(vectors, MOST_COLUMNS * len(stage.header.groups))


def ratio(part: Tensor, whole: Tensor) -> float:
    """||part|| / ||whole||; 0 where both are 0."""
    size = float(torch.linalg.vector_norm(whole))
    off = float(torch.linalg.vector_norm(part))
    return off / size if size else (math.inf if off else 0.0)


def _segments(
    stage: StageTrajectory,
    steps: Sequence[Step],
    declared: Declared | None,
    count: int,
    examples: int,
) -> tuple[Segment, ...]:
    batch = declared.batch if declared is not None else 1
    return segments_of(stage, steps, count=count, examples=examples, batch=batch)


def _count_before(stage: StageTrajectory) -> int:
    """Steps that the optimizer had made before the stage, as its rule counts them."""
    group = stage.groups[0]
    if stage.header.boundary == "reset" or not group.parameters:
        return 0
    rule = linear_rule_of(stage.header.optimizer, group.options)
    return rule.steps_made(stage.first.optimizer_state.get(group.parameters[0], {}))


def _displacement(
    stages: Sequence[StageTrajectory], index: int, starts: Mapping[str, State], final: State
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """delta_b = xi_a - xi_b at a stage's end: parameters, and the first moment where it is carried."""
    stage, later = stages[index], stages[index + 1 : index + 2]
    a = starts.get(stage.id) or stage.first
    b = (starts.get(later[0].id) or stage.last) if later else final
    theta = {n: (a.parameters[n].double() - p.double()) for n, p in b.parameters.items()}
    nu = {n: torch.zeros_like(d) for n, d in theta.items()}
    if later and later[0].header.boundary == "carry":
        rule = linear_rule_of(stage.header.optimizer, stage.groups[0].options)
        for name, d in theta.items():
            ends = [s.optimizer_state.get(name, {}).get(rule.first_moment) for s in (a, b)]
            left, right = (torch.zeros_like(d) if m is None else m.double() for m in ends)
            nu[name] = left - right
    return theta, nu


def _refuse(stages: Sequence[StageTrajectory], omitted: Sequence[str]) -> None:
    """What the recurrence does not cover, by name."""
    require_derivatives(stages, gated=False)
    for stage, later in itertools.pairwise(stages):
        rules = [linear_rule_of(later.header.optimizer, group.options) for group in later.groups]
        if later.header.extend is not None:
            raise UnsupportedError(
                f"stage '{later.id}' changed the model; krylov does not follow a displacement there",
                "use estimator.method: replay",
            )
        if stage.id not in omitted or later.header.boundary != "carry":
            continue
        if any(rule.counts_steps for rule in rules):
            raise UnsupportedError(
                f"stage '{later.id}' carries {later.header.optimizer}'s counter and second moment "
                f"on; without '{stage.id}' they would be others, which krylov does not follow",
                "use estimator.method: replay",
            )
        fresh = not stage.first.optimizer_state
        damped = any(
            rule.coefficients(0, group.options).b != rule.coefficients(1, group.options).b
            for rule, group in zip(rules, later.groups, strict=True)
        )
        if fresh and damped:
            raise UnsupportedError(
                f"stage '{later.id}' carries momentum with dampening; without '{stage.id}' its "
                "first step would go undampened, which krylov does not follow",
                "use estimator.method: replay",
            )


def _counterfactual(arm: Arm, sweep: _Sweep, row: int, final: State) -> Counterfactual:
    crossing = sweep.crossing[row]
    delta = {n: rows[row].cpu() for n, rows in sweep.theta.items()}
    size = norm(delta)
    if not math.isfinite(size):
        raise EstimationError(
            f"the displacement of stage '{crossing.stage}' grows beyond all bounds",
            "take the curvature `positive`, which does not amplify, or use estimator.method: replay",
        )
    diagnostics = {
        "growth": size / crossing.start if crossing.start else 1.0,
        "truncation": crossing.truncation,
        "nonlinearity": crossing.nonlinearity,
    }
    return Counterfactual(
        arm=arm,
        method=Krylov.name,
        exact=False,
        state=State({n: final.parameters[n].to(d) + d for n, d in delta.items()}, final.buffers),
        delta=delta,
        gradients=crossing.gradients,
        seconds=crossing.seconds,
        diagnostics=diagnostics,
    )
