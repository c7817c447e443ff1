"""Which estimator each stage gets, and whether the budget pays for it.

Costs are in minibatch gradients and follow from the record alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.steps import update_map
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import Method


@dataclass(frozen=True)
class Choice:
    """The method for one stage, its forecast cost, and why it was taken."""

    stage: str
    method: Method
    gradients: float
    reason: str


def choose(
    trajectory: Trajectory, method: Literal["auto"] | Method, budget: int | None
) -> tuple[Choice, ...]:
    """One choice per stage, in order of training.

    The last stage needs no estimate: its counterfactual is the recorded state before it. `auto`
    takes exact replay: one sweep of n tangents costs 1 + 2n gradients a step, the n replays that it
    would spare cost n.

    Raises:
        EstimationError: if the method does not fit the budget, or steps that every method needs are
            missing.
        UnsupportedError: if the method asked for cannot differentiate this run.
    """
    stages = trajectory.stages
    _require_steps(stages[1:])
    if method == "auto" or method == "replay":
        choices = _replays(stages)
    else:
        require_derivatives(stages, gated=method == "first-order")
        if method == "displacement":
            _refuse_carried_counters(stages)
        choices = _one_sweep(stages, method)
    total = sum(choice.gradients for choice in choices)
    if budget is not None and total > budget:
        which = "the cheapest estimator" if method == "auto" else method
        raise EstimationError(
            f"the budget is {budget:,} gradients; {which} needs {total:,.0f}",
            f"raise estimator.budget.gradients to {math.ceil(total)} or more",
        )
    return choices


def require_derivatives(stages: Sequence[StageTrajectory], *, gated: bool) -> None:
    """Refuse a run that the tangent estimators do not cover, by name.

    Args:
        stages: of the whole run.
        gated: whether stages are differentiated inside too (first-order); otherwise the first one
            is not.

    Raises:
        UnsupportedError: for an optimizer or option without an update map, and for floating buffers
            that training changes (BatchNorm).
    """
    for stage in stages if gated else stages[1:]:
        for group in stage.header.groups:
            update_map(stage.header.optimizer, group.options)
    first, last = stages[0].first.buffers, stages[-1].last.buffers
    moving = [n for n, b in last.items() if b.is_floating_point() and not torch.equal(b, first[n])]
    if moving:
        raise UnsupportedError(
            f"training changes floating buffers ({', '.join(moving[:3])}), as BatchNorm does; "
            "their derivative is not available",
            "use estimator.method: replay",
        )


def gradients_of(stage: StageTrajectory) -> int:
    """Minibatch gradients that one pass over a stage takes."""
    return sum(len(step.batches) for step in stage.steps)


def _replays(stages: Sequence[StageTrajectory]) -> tuple[Choice, ...]:
    """Every stage by exact replay of the later ones."""
    cost = [gradients_of(stage) for stage in stages]
    choices = [
        Choice(stage.id, "replay", sum(cost[i + 1 :]), "exact, and within the budget")
        for i, stage in enumerate(stages)
    ]
    return (*choices[:-1], _last(stages))


def _one_sweep(stages: Sequence[StageTrajectory], method: Method) -> tuple[Choice, ...]:
    """Every stage but the last by one sweep, whose gradients its directions share."""
    share = dict.fromkeys(range(len(stages) - 1), 0.0)
    for j, crossed in enumerate(stages):
        active = [i for i in share if i < j or (i == j and method == "first-order")]
        for i in active:
            share[i] += gradients_of(crossed) * (1 / len(active) + 2)
    choices = [
        Choice(stages[i].id, method, round(cost, 3), f"{method} was asked for")
        for i, cost in share.items()
    ]
    return (*choices, _last(stages))


def _last(stages: Sequence[StageTrajectory]) -> Choice:
    reason = "the last stage's counterfactual is the state before it"
    return Choice(stages[-1].id, "replay", 0, reason)


def _refuse_carried_counters(stages: Sequence[StageTrajectory]) -> None:
    """Leaving a stage out takes its steps from Adam's counter too, which a tangent cannot do.

    Raises:
        UnsupportedError: for Adam or AdamW carried across a boundary.
    """
    for stage in stages:
        if stage.header.boundary == "carry" and stage.header.optimizer in ("Adam", "AdamW"):
            raise UnsupportedError(
                f"stage '{stage.id}' carries {stage.header.optimizer}'s counter on; displacement "
                "does not follow it",
                "use estimator.method: replay",
            )


def by_method(choices: Sequence[Choice], *methods: Method) -> Mapping[str, Method]:
    """The stages that get one of the methods."""
    return {choice.stage: choice.method for choice in choices if choice.method in methods}


def _require_steps(stages: Sequence[StageTrajectory]) -> None:
    for stage in stages:
        if not stage.steps and stage.header.steps:
            raise EstimationError(
                f"stage '{stage.id}' was recorded without its steps; no estimator can cross it",
                "record the run with every=N instead of every='boundaries'",
            )
