"""Every estimator that the ladder compares, the plain baselines among them: one function each.

An estimator gets a `Job` and gives an `Estimate`. It may look at the record, not at the exact
effects. What it cannot do it refuses with an AuditspecError; the table then says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from auditspec.engine.rerun import Rerun
from auditspec.estimator.counterfactual import Counterfactual, difference
from auditspec.estimator.interface import Baseline, Context, Estimator, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.linear.tangent import Displacement, FirstOrder
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.plan import AUTO, choose
from auditspec.estimator.replay.replay import Replay
from auditspec.record.state import State, restore
from auditspec.report.words import text

from .readings import Effects, Evaluator
from .settings import Run

CHECKPOINTS = 60
"""Most steps a stage at which gradient dot products are taken."""


@dataclass(frozen=True)
class Job:
    """What an estimator works on."""

    run: Run
    rerun: Rerun
    reader: Evaluator
    exact_gradients: float
    """What exact replay of all stages costs: the unit of budgets."""

    @property
    def final(self) -> State:
        """theta_K."""
        return self.reader.final

    @property
    def stages(self) -> tuple[str, ...]:
        """All but the last, whose counterfactual is a recorded state."""
        return self.run.stages[:-1]

    def estimate(
        self, estimator: Estimator, budget: int | None = None
    ) -> dict[str, Counterfactual]:
        """Every stage's counterfactual, by its id."""
        context = Context(engine=self.rerun, run=Baseline(self.final), budget=budget)
        return by_stage(estimator.estimate(context, Arm.each(self.stages)))


@dataclass
class Estimate:
    """Effects by one estimator, and what they cost."""

    effects: Effects
    gradients: float
    twin: Callable[[], Estimate] | None = None
    """Of paired replay: the same from steps shifted by half a window. Its cost is its own."""
    also: dict[str, Effects] = field(default_factory=dict)
    """Other readings of the same counterfactuals, by the estimator's name for them."""
    note: str = ""


def zero(job: Job) -> Estimate:
    """Predict that no stage had any effect: error 1 by definition."""
    return Estimate(Effects.zeros(job.run), 0)


def no_propagation(job: Job) -> Estimate:
    """delta_K := theta_a - theta_b, read plug-in: later stages neither amplify nor erase."""
    deltas, theta = _stage_differences(job), job.final.parameters
    states = {
        stage: State({n: t + delta[n] for n, t in theta.items()}, job.final.buffers)
        for stage, delta in deltas.items()
    }
    return Estimate(job.reader.plug_in(states), 0)


def checkpoint_difference(job: Job) -> Estimate:
    """grad gamma(theta_K) · (theta_b - theta_a): the difference of two checkpoints, read linearly."""
    return Estimate(job.reader.linear(_stage_differences(job)), 0)


def gradient_dot_products(job: Job) -> Estimate:
    """Sum over the stage's steps of -lr_k <grad gamma(theta_k), g_k> (TracIn, arXiv 2002.08484).

    Stages of more than `CHECKPOINTS` steps are summed at that many, evenly spaced, each standing for
    those up to the next. Costs, in minibatch gradients, one for g_k and one over all evaluation rows
    for grad gamma.
    """
    total, gradients = Effects.zeros(job.run), 0.0
    evaluation = len(job.run.evaluation.y) / job.run.setting.batch
    for row, stage in enumerate(job.run.trajectory.stages[:-1]):
        steps = job.rerun.steps_of(stage)
        taken = np.linspace(0, len(steps), min(len(steps), CHECKPOINTS) + 1).astype(int)
        optimizer = job.rerun.optimizer(stage)
        for k, n in itertools.pairwise(taken.tolist()):
            state = stage.state(k)
            restore(state, job.rerun.model)
            with job.rerun.training():
                step_gradient = job.rerun.gradient(stage, steps[k], optimizer)
            rates = {
                name: sum(step.groups[i]["lr"] for step in steps[k:n])
                for i, group in enumerate(stage.header.groups)
                for name in group.parameters
            }
            moved = {
                name: -rates[name] * g
                for name, g in step_gradient.gradients.items()
                if g is not None
            }
            job.reader.add(total, row, *job.reader.tangent(state, moved))
            gradients += len(steps[k].batches) + evaluation
    return Estimate(total, gradients)


def first_order(job: Job) -> Estimate:
    """AA-Score of arXiv 2506.00175, read linearly, as it is defined; plug-in beside it."""
    found = job.estimate(FirstOrder())
    linear = job.reader.linear({stage: c.delta for stage, c in found.items()})
    plug_in = _plug_in(job, found).effects
    return Estimate(linear, _gradients(found), also={"first-order, plug-in": plug_in})


def displacement(job: Job) -> Estimate:
    """The stage's displacement, carried linearly across the later stages, read plug-in."""
    return _plug_in(job, job.estimate(Displacement()))


def krylov_space(job: Job) -> Estimate:
    """As displacement, with ten Hessian-vector products a later stage, from its boundaries."""
    return _plug_in(job, job.estimate(Krylov()))


def batched_replay(job: Job) -> Estimate:
    """Exact replay of all stages in one pass, their arms batched."""
    found = job.estimate(Replay())
    notes = {text(c.notes) for c in found.values() if c.notes}
    return Estimate(
        job.reader.plug_in({s: c.state for s, c in found.items()}),
        _gradients(found),
        note=" | ".join(sorted(notes)),
    )


def paired_at(fraction: float) -> Callable[[Job], Estimate]:
    """Paired replay at a fraction of exact replay's gradients, with its twin at the same cost."""

    def estimate(job: Job, estimator: PairedReplay | None = None) -> Estimate:
        estimator = estimator or PairedReplay()
        found = job.estimate(estimator, int(fraction * job.exact_gradients))
        read = _plug_in(job, found)
        read.twin = lambda: estimate(job, estimator.twin())
        return read

    return estimate


def automatic(job: Job) -> Estimate:
    """What `method: auto` takes at a quarter of exact replay's gradients, which rules replay out."""
    budget = int(QUARTER * job.exact_gradients)
    choices = choose(job.run.trajectory, AUTO, Terms(budget=budget))
    (method,) = {choice.method for choice in choices if choice.stage in job.stages}
    estimate = BY_METHOD[method](job)
    estimate.note = f"took {method}"
    return estimate


def exact_replay(run: Run, rerun: Rerun, reader: Evaluator) -> Estimate:
    """Exact replay, stage by stage: the ground truth."""
    context = Context(engine=rerun, run=Baseline(reader.final))
    found = by_stage(Replay(batched=False).estimate(context, Arm.each(run.stages[:-1])))
    return Estimate(reader.plug_in({s: c.state for s, c in found.items()}), _gradients(found))


QUARTER = 0.25
BY_METHOD: dict[str, Callable[[Job], Estimate]] = {
    "first-order": first_order,
    "displacement": displacement,
    "krylov": krylov_space,
    "paired-replay": paired_at(QUARTER),
}
"""The product's name of a method -> its rung."""

ESTIMATORS: dict[str, Callable[[Job], Estimate]] = {
    "zero": zero,
    "none": no_propagation,
    "checkpoint-difference": checkpoint_difference,
    "gradient-dot-products": gradient_dot_products,
    "first-order": first_order,
    "displacement": displacement,
    "krylov": krylov_space,
    "paired-replay 1/8": paired_at(1 / 8),
    "paired-replay 1/4": paired_at(1 / 4),
    "paired-replay 1/2": paired_at(1 / 2),
    "auto 1/4": automatic,
    "replay, batched": batched_replay,
}
BASELINES = ("zero", "none", "checkpoint-difference", "gradient-dot-products")
"""Printed beside the estimators, in every setting."""


def _stage_differences(job: Job) -> dict[str, dict[str, Tensor]]:
    """theta_a - theta_b of each stage."""
    stages = job.run.trajectory.stages[:-1]
    return {s.id: difference(s.first.parameters, s.last.parameters) for s in stages}


def _plug_in(job: Job, found: Mapping[str, Counterfactual]) -> Estimate:
    states = {stage: c.state for stage, c in found.items()}
    return Estimate(job.reader.plug_in(states), _gradients(found))


def by_stage(found: Mapping[Arm, Counterfactual]) -> dict[str, Counterfactual]:
    """Counterfactuals without one stage, by its id."""
    return {made.stage: made for made in found.values()}


def _gradients(found: Mapping[str, Counterfactual]) -> float:
    return sum(c.gradients for c in found.values())
