"""Which estimator each stage gets: the most accurate that the budget pays for.

Costs are in minibatch gradients and follow from the record alone. With few stages, exact replay is
cheaper than Hessian-vector products, so it comes first.
"""

from __future__ import annotations

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

    The last stage needs no estimate: its counterfactual is the recorded state before it. With
    `auto`, the latest stages, whose replay is cheapest, are replayed and the earlier ones take
    `displacement`, with as many replays as the budget allows.

    Raises:
        EstimationError: if no method fits the budget, or steps that every method needs are missing.
        UnsupportedError: if the method asked for cannot differentiate this run.
    """
    stages = trajectory.stages
    _require_steps(stages[1:])
    if method != "auto":
        if method != "replay":
            require_derivatives(stages)
        choices = _mixed(stages, len(stages) if method == "replay" else 1, method)
        total = sum(choice.gradients for choice in choices)
        if budget is not None and total > budget:
            raise EstimationError(
                f"{method} needs {total:,.0f} gradients; the budget is {budget:,}",
                "raise estimator.budget.gradients, or use estimator.method: auto",
            )
        return choices
    cheapest = float("inf")
    for replayed in range(len(stages), 0, -1):
        if replayed < len(stages):
            require_derivatives(stages)
        choices = _mixed(stages, replayed, "displacement")
        total = sum(choice.gradients for choice in choices)
        if budget is None or total <= budget:
            return choices
        cheapest = min(cheapest, total)
    raise EstimationError(
        f"no estimator fits the budget of {budget:,} gradients; the cheapest needs {cheapest:,.0f}",
        f"raise estimator.budget.gradients to {cheapest:.0f} or more",
    )


def require_derivatives(stages: Sequence[StageTrajectory]) -> None:
    """Refuse a run that the tangent estimators do not cover, by name.

    Raises:
        UnsupportedError: for an optimizer or option without an update map, and for floating buffers
            that training changes (BatchNorm).
    """
    for stage in stages:
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


def _mixed(
    stages: Sequence[StageTrajectory], replayed: int, otherwise: Method
) -> tuple[Choice, ...]:
    """Replay the last `replayed` stages; the others share one sweep with `otherwise`."""
    cost = [gradients_of(stage) for stage in stages]
    n, swept = len(stages), len(stages) - replayed
    share: dict[int, float] = dict.fromkeys(range(swept), 0.0)
    for j in range(n):
        active = [i for i in range(swept) if i < j or (i == j and otherwise == "first-order")]
        for i in active:
            share[i] += cost[j] * (1 / len(active) + 2)
    choices = []
    for i, stage in enumerate(stages):
        if i == n - 1:
            reason = "the last stage's counterfactual is the state before it"
            choices.append(Choice(stage.id, "replay", 0, reason))
        elif i >= swept:
            total = sum(cost[i + 1 :])
            reason = f"exact, and its {total:,} gradients are within the budget"
            choices.append(Choice(stage.id, "replay", total, reason))
        else:
            reason = (
                "exact replay is above the budget"
                if otherwise == "displacement"
                else f"{otherwise} was asked for"
            )
            choices.append(Choice(stage.id, otherwise, round(share[i], 3), reason))
    return tuple(choices)


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
