"""Which estimator each stage gets, and whether the budget pays for it.

Costs are in minibatch gradients and follow from the record alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from auditspec.errors import BudgetError, EstimationError, UnsupportedError
from auditspec.estimator.forecast import (
    Forecast,
    Pace,
    gradients_of,
    need,
    replay_cost,
    state_bytes,
    sweep_cost,
)
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.krylov import forecast as krylov_cost
from auditspec.estimator.krylov.segments import Declared, steps_of
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget
from auditspec.estimator.paired.stored_gradients import kept_bytes
from auditspec.estimator.requirements import (
    refuse_carried_counters,
    require_derivatives,
    require_known_statistics,
    require_steps,
)
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import Method

EXACT = "exact, and within the budget"
KRYLOV_VECTORS = 10
NOTHING: Mapping[str, Declared] = {}


@dataclass(frozen=True)
class Choice:
    """The method for one stage, its forecast cost, and why it was taken."""

    stage: str
    method: Method
    gradients: float
    reason: str


def choose(
    trajectory: Trajectory,
    method: Literal["auto"] | Method,
    budget: int | None,
    kept: Collection[str] = (),
    declared: Mapping[str, Declared] = NOTHING,
) -> tuple[Choice, ...]:
    """One choice per stage, in order of training.

    The last stage needs no estimate: its counterfactual is the recorded state before it. `auto`
    takes exact replay where the budget pays for it, and paired replay under the whole budget
    otherwise: it is the most accurate of the estimates at any cost below replay's (docs/method.md).
    `kept` are the stages whose recorded gradients a check computes and keeps for it; `declared` is
    what krylov goes by where a stage's steps were not recorded.

    Raises:
        BudgetError: if the method does not fit the budget.
        EstimationError: if steps that it needs are missing.
        UnsupportedError: if the method asked for cannot follow this run.
    """
    stages = trajectory.stages
    if method != "krylov":
        require_steps(stages[1:])
    if method == "auto":
        return _auto(trajectory, budget, kept)
    if method == "replay":
        choices = _chosen(stages, method, replay_cost(stages), EXACT)
    elif method == "paired-replay":
        return _paired(trajectory, budget, "paired-replay was asked for", kept)
    elif method == "krylov":
        _require_krylov(stages)
        choices = _chosen(
            stages, method, _krylov_cost(trajectory, declared), "krylov was asked for"
        )
    else:
        _require_tangents(stages, method)
        cost = sweep_cost(stages, gated=method == "first-order")
        choices = _chosen(stages, method, cost, f"{method} was asked for")
    total = sum(choice.gradients for choice in choices)
    if budget is not None and total > budget:
        raise _too_little(budget, method, total)
    return choices


def pairs(trajectory: Trajectory, method: Literal["auto"] | Method, budget: int | None) -> bool:
    """Whether paired replay is what `choose` takes, if it takes anything."""
    whole = sum(replay_cost(trajectory.stages).values())
    return method == "paired-replay" or (method == "auto" and budget is not None and budget < whole)


def forecasts(
    trajectory: Trajectory,
    budget: int | None,
    pace: Pace,
    kept: Collection[str] = (),
    declared: Mapping[str, Declared] = NOTHING,
) -> tuple[Forecast, ...]:
    """What every estimator would cost for all stages, and whether the record carries it.

    Args:
        trajectory: the record.
        budget: what paired replay may spend; None: a quarter of exact replay's gradients.
        pace: seconds of a gradient in each stage.
        kept: the stages whose recorded gradients a check computes and keeps for paired replay.
        declared: what krylov goes by where a stage's steps were not recorded.
    """
    stages = trajectory.stages
    weights, optimizer_state = state_bytes(trajectory)
    arms, disk = max(len(stages) - 1, 0), 2 * weights * len(stages)
    interior = weights * arms * (arms + 1) // 2  # a state a later stage and arm, the last its end
    kept_interior = disk + interior - weights * arms
    steps = need("the steps of every later stage", lambda: require_steps(stages[1:]))
    data = need("the data sets that its ids point into", lambda: None, _data_of(stages))
    replayed = replay_cost(stages)
    whole = sum(replayed.values())
    found = []
    gated: tuple[tuple[Method, bool], ...] = (("first-order", True), ("displacement", False))
    for method, inside in gated:
        cost = sweep_cost(stages, gated=inside)
        derivatives = need(
            "second derivatives, and an optimizer with an update map",
            partial(_require_tangents, stages, method),
        )
        memory = (arms + 3) * (weights + optimizer_state)
        seconds = _seconds(stages, pace, sum(cost.values()))
        found.append(
            Forecast(method, sum(cost.values()), seconds, memory, disk, (steps, data, derivatives))
        )
    curved = need("an optimizer whose recurrence is known", partial(_require_krylov, stages))
    rates = need(
        "the steps or the declared schedule of every later stage",
        lambda: [steps_of(stage, declared.get(stage.id)) for stage in stages[1:]],
    )
    able = rates.there and curved.there
    products = sum(_krylov_cost(trajectory, declared).values()) if able else 0.0
    memory = (arms * (KRYLOV_VECTORS + 3) + 3) * weights
    seconds = _seconds(stages, pace, products)
    found.append(Forecast("krylov", products, seconds, memory, disk, (rates, data, curved)))
    asked = budget if budget is not None else max(int(whole / 4), 1)
    buffers = need("no floating buffers but BatchNorm's", lambda: require_known_statistics(stages))
    least = smallest_budget(trajectory, _arms(stages), kept) if steps.there else 0
    enough = need(f"a budget of {least:,} gradients or more", lambda: _require_budget(asked, least))
    paid = (
        float(schedule(trajectory, _arms(stages), asked, kept=kept).gradients)
        if steps.there and enough.there
        else 0.0
    )
    held = (
        arms * (3 * weights + 2 * optimizer_state)
        + weights * _window(stages, paid, arms)
        + interior
    )
    found.append(
        Forecast(
            "paired-replay",
            paid,
            _seconds(stages, pace, paid),
            held,
            kept_interior + kept_bytes(trajectory, kept),
            (steps, data, buffers, enough),
        )
    )
    memory = arms * (2 * weights + optimizer_state) + interior
    seconds = _seconds(stages, pace, whole)
    found.append(Forecast("replay", whole, seconds, memory, kept_interior, (steps, data)))
    return tuple(found)


def by_method(choices: Sequence[Choice], *methods: Method) -> Mapping[str, Method]:
    """The stages that get one of the methods."""
    return {choice.stage: choice.method for choice in choices if choice.method in methods}


def _auto(trajectory: Trajectory, budget: int | None, kept: Collection[str]) -> tuple[Choice, ...]:
    stages = trajectory.stages
    exact = _chosen(stages, "replay", replay_cost(stages), EXACT)
    total = sum(choice.gradients for choice in exact)
    if budget is None or total <= budget:
        return exact
    try:
        require_known_statistics(stages)
    except UnsupportedError as error:
        which = (
            "exact replay, the one method for floating buffers that only the model knows to move,"
        )
        raise _too_little(budget, which, total) from error
    least = smallest_budget(trajectory, _arms(stages), kept)
    if budget < least:
        raise _too_little(budget, "the cheapest estimator", least)
    reason = f"exact replay of every stage needs {total:,.0f} gradients, more than the budget"
    return _paired(trajectory, budget, reason, kept)


def paired_choices(
    trajectory: Trajectory,
    wanted: Sequence[str],
    budget: int | None,
    reason: str,
    kept: Collection[str] = (),
) -> tuple[Choice, ...]:
    """Some stages by paired replay, which share a budget.

    Raises:
        BudgetError: if it is too small.
        UnsupportedError: if paired replay cannot follow this run.
    """
    stages = trajectory.stages
    require_known_statistics(stages)
    whole = math.ceil(sum(replay_cost(stages).values()))
    asked = whole if budget is None else budget
    placed = schedule(trajectory, Arm.each(wanted), asked, kept=kept)
    shares = dict.fromkeys(wanted, 0.0)
    for (arm, j), sampled in placed.sampled.items():
        shares[_one(arm)] += sum(len(stages[j].steps[k].batches) for k in sampled)
    for j, cost in placed.observed.items():
        served = [arm for arm, k in placed.skipping if k == j]
        for arm in served:
            shares[_one(arm)] += cost / len(served)
    return tuple(
        Choice(stage, "paired-replay", round(cost, 3), reason) for stage, cost in shares.items()
    )


def _paired(
    trajectory: Trajectory, budget: int | None, reason: str, kept: Collection[str]
) -> tuple[Choice, ...]:
    """Every stage but the last by paired replay under the whole budget."""
    stages = trajectory.stages
    choices = paired_choices(trajectory, _estimated(stages), budget, reason, kept)
    return (*choices, last_choice(stages[-1].id))


def last_choice(stage: str) -> Choice:
    """The last stage needs no estimate."""
    return Choice(stage, "replay", 0, "the last stage's counterfactual is the state before it")


def _chosen(
    stages: Sequence[StageTrajectory], method: Method, cost: Mapping[str, float], reason: str
) -> tuple[Choice, ...]:
    choices = [Choice(stage.id, method, cost[stage.id], reason) for stage in stages[:-1]]
    return (*choices, last_choice(stages[-1].id))


def _estimated(stages: Sequence[StageTrajectory]) -> list[str]:
    return [stage.id for stage in stages[:-1]]


def _arms(stages: Sequence[StageTrajectory]) -> list[Arm]:
    return Arm.each(_estimated(stages))


def _one(arm: Arm) -> str:
    return next(iter(arm.omitted))


def _krylov_cost(trajectory: Trajectory, declared: Mapping[str, Declared]) -> dict[str, float]:
    """Each stage's share of a krylov sweep, in proportion to its cost alone; at most what it takes."""
    stages = trajectory.stages
    wanted = _estimated(stages)
    total = krylov_cost(trajectory, wanted, declared=declared)
    alone = {stage: krylov_cost(trajectory, [stage], declared=declared) for stage in wanted}
    whole = sum(alone.values()) or 1.0
    shares = {stage: round(total * cost / whole, 3) for stage, cost in alone.items()}
    return shares | {stages[-1].id: 0.0}


def _require_krylov(stages: Sequence[StageTrajectory]) -> None:
    require_derivatives(stages, gated=False)
    refuse_carried_counters(stages)


def _require_tangents(stages: Sequence[StageTrajectory], method: Method) -> None:
    require_derivatives(stages, gated=method == "first-order")
    if method == "displacement":
        refuse_carried_counters(stages)


def _require_budget(budget: int, least: int) -> None:
    if budget < least:
        raise EstimationError(f"the budget is {budget:,}")


def _too_little(budget: int, which: str, needed: float) -> BudgetError:
    return BudgetError(
        f"the budget is {budget:,} gradients; {which} needs {needed:,.0f}",
        f"raise estimator.budget.gradients to {math.ceil(needed)} or more",
    )


def _seconds(stages: Sequence[StageTrajectory], pace: Pace, gradients: float) -> float:
    """Gradients at the mean pace of the stages that an estimate crosses."""
    crossed = stages[1:] or stages
    passes = sum(gradients_of(stage) for stage in crossed)
    spent = sum(gradients_of(stage) * pace.seconds[stage.id] for stage in crossed)
    return gradients * spent / passes if passes else 0.0


def _data_of(stages: Sequence[StageTrajectory]) -> str:
    return ", ".join(sorted({name for stage in stages for name in stage.datasets}))


def _window(stages: Sequence[StageTrajectory], paid: float, arms: int) -> float:
    """Mean steps between two sampled ones."""
    crossed = sum((i + 1) * len(stage.steps) for i, stage in enumerate(stages[1:]))
    return max(1.0, crossed / paid) if paid and arms else 1.0
