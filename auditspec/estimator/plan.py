"""Which estimator each stage gets, and whether the budget pays for it.

Costs are in minibatch gradients and follow from the record alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from auditspec import estimator as package
from auditspec.errors import BudgetError, EstimationError, UnsupportedError, UsageError
from auditspec.estimator.forecast import Pace, gradients_of, parameters_of, replay_cost
from auditspec.estimator.interface import Estimator, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.replay.replay import LARGEST, Replay
from auditspec.estimator.simulated.simulated import SimulatedReplay
from auditspec.estimator.subbatch.parts import require_rows
from auditspec.estimator.subbatch.subbatch import SubBatchReplay
from auditspec.messages import Message, message
from auditspec.plugins import available
from auditspec.record.trajectory import Trajectory

AUTO = "auto"
"""Asks for exact replay where the budget pays for it, for an estimate from some steps or rows otherwise, and for simulated
replay where no steps were recorded."""
EXACT = message("exact-within-budget")
UNLIMITED = 1 / 4
"""Share of exact replay's gradients at which an estimator is forecast that makes of any budget what it can."""


@dataclass(frozen=True)
class Choice:
    """The estimator for one stage, its forecast cost, and why it was taken."""

    stage: str
    estimator: Estimator
    gradients: float
    reason: Message

    @property
    def method(self) -> str:
        """The estimator's name."""
        return self.estimator.name


@dataclass(frozen=True)
class Need:
    """Something that an estimator needs of the evidence, and whether it is there."""

    what: str
    there: bool
    note: str = ""


@dataclass(frozen=True)
class Prospect:
    """An estimator on a record: what it needs, and what every stage together would cost."""

    method: str
    needs: tuple[Need, ...]
    forecast: Forecast | None
    """None where something is missing."""
    seconds: float = 0.0

    @property
    def possible(self) -> bool:
        """Whether everything that it needs is there."""
        return self.forecast is not None


def estimators() -> dict[str, type[Estimator]]:
    """Every estimator by its name: the built-in ones, and those of plug-ins."""
    return available("estimators", package.ESTIMATORS, Estimator)  # type: ignore[type-abstract]


def estimator_named(name: str) -> Estimator:
    """An estimator with its default options.

    Raises:
        UsageError: if there is none of that name.
    """
    classes = estimators()
    if name not in classes:
        raise UsageError(f"no estimator is named '{name}'", f"use one of {', '.join(classes)}")
    return classes[name]()


def expected(record: Trajectory, method: str, budget: float | None) -> Estimator:
    """What `choose` takes for the stages, if it takes anything."""
    if method != AUTO:
        return estimator_named(method)
    if record.grade == "boundaries":
        return SimulatedReplay()
    whole = sum(replay_cost(record.stages).values())
    return Replay() if budget is None or budget >= whole else sampling(record)


def sampling(record: Trajectory) -> Estimator:
    """The estimate that makes of any budget what it allows: of some steps, or of some rows of every step.

    Rows, where the model is so large that fewer of them take less time too, and minibatches can be taken apart. There
    minibatch noise rules as well, so that what a whole step says holds for few of its neighbours (docs/method.md).
    """
    if parameters_of(record) <= LARGEST:
        return PairedReplay()
    try:
        require_rows(record.stages[1:])
    except EstimationError:
        return PairedReplay()
    return SubBatchReplay()


def needs_steps(method: str) -> bool:
    """Whether estimates by a method need the recorded steps."""
    return method == AUTO or estimator_named(method).needs_steps


def choose(record: Trajectory, method: str, terms: Terms) -> tuple[Choice, ...]:
    """One choice per stage, in order of training.

    The last stage needs no estimate: its counterfactual is the recorded state before it. `auto`
    takes exact replay where the budget pays for it, and `sampling`'s estimate under the whole budget
    otherwise: it is the most accurate at any cost below replay's (docs/method.md). Where no steps were recorded, it
    takes simulated replay.

    Raises:
        BudgetError: if the method does not fit the budget.
        EstimationError: if steps that it needs are missing.
        UnsupportedError: if the method asked for cannot follow this run.
        UsageError: if there is no such method.
    """
    if method == AUTO:
        return _auto(record, terms)
    estimator = estimator_named(method)
    reason = EXACT if estimator.exact else message("asked-for", method=method)
    every = [stage.id for stage in record.stages[:-1]]
    choices = (*choices_of(estimator, record, every, terms, reason), last_choice(record))
    total = sum(choice.gradients for choice in choices)
    if terms.budget is not None and not estimator.budgeted and total > terms.budget:
        raise _too_little(terms.budget, method, total)
    return choices


def choices_of(
    estimator: Estimator, record: Trajectory, stages: Sequence[str], terms: Terms, reason: Message
) -> tuple[Choice, ...]:
    """Some stages by one estimator, which share a budget.

    Raises:
        BudgetError: if it is too small.
        EstimationError: if the record lacks what the estimator needs.
        UnsupportedError: if the estimator cannot follow this run.
    """
    arms = Arm.each(stages)
    estimator.require(record, arms, terms)
    forecast = estimator.forecast(record, arms, terms)
    return tuple(
        Choice(arm.stage, estimator, share, reason) for arm, share in forecast.shares.items()
    )


def last_choice(record: Trajectory) -> Choice:
    """The last stage needs no estimate."""
    return Choice(record.stages[-1].id, Replay(), 0, message("last-needs-none"))


def prospects(record: Trajectory, terms: Terms, pace: Pace) -> tuple[Prospect, ...]:
    """What every estimator would cost for all stages, and whether the record carries it.

    Args:
        record: the trainer's.
        terms: what estimates may go by. Without a budget, an estimator that makes of any budget what it can
            is forecast at a quarter of exact replay's gradients.
        pace: seconds of a gradient in each stage.
    """
    arms = Arm.each(stage.id for stage in record.stages[:-1])
    whole = sum(replay_cost(record.stages).values())
    quarter = replace(terms, budget=max(int(whole * UNLIMITED), 1)) if whole else terms
    rows = []
    for kind in estimators().values():
        estimator = kind()
        given = quarter if estimator.budgeted and terms.budget is None else terms
        needs = tuple(map(_met, estimator.requirements(record, arms, given)))
        forecast = None
        if all(need.there for need in needs):
            forecast = estimator.forecast(record, arms, given)
        seconds = _seconds(record, pace, forecast.gradients) if forecast is not None else 0.0
        rows.append(Prospect(estimator.name, needs, forecast, seconds))
    return tuple(rows)


def _met(requirement: Requirement) -> Need:
    try:
        requirement.check()
    except EstimationError as error:
        return Need(requirement.what, False, error.message)
    return Need(requirement.what, True, requirement.note)


def _auto(record: Trajectory, terms: Terms) -> tuple[Choice, ...]:
    stages, budget = [stage.id for stage in record.stages[:-1]], terms.budget
    if record.grade == "boundaries":
        simulated = choices_of(
            SimulatedReplay(), record, stages, terms, message("order-not-recorded")
        )
        return (*simulated, last_choice(record))
    exact = (*choices_of(Replay(), record, stages, terms, EXACT), last_choice(record))
    total = sum(choice.gradients for choice in exact)
    if budget is None or total <= budget:
        return exact
    sampled, arms = sampling(record), Arm.each(stages)
    try:
        sampled.require(record, arms, replace(terms, budget=None))
    except UnsupportedError as error:
        which = (
            "exact replay, the one method for floating buffers that only the model knows to move,"
        )
        raise _too_little(budget, which, total) from error
    least = sampled.least(record, arms, terms)
    if budget < least:
        raise _too_little(budget, "the cheapest estimator", least)
    reason = sampled.instead_of_replay(record, total)
    return (*choices_of(sampled, record, stages, terms, reason), last_choice(record))


def _too_little(budget: int, which: str, needed: float) -> BudgetError:
    return BudgetError(
        f"the budget is {budget:,} gradients; {which} needs {needed:,.0f}",
        f"raise estimator.budget.gradients to {math.ceil(needed)} or more",
    )


def _seconds(record: Trajectory, pace: Pace, gradients: float) -> float:
    """Gradients at the mean pace of the stages that an estimate crosses."""
    crossed = record.stages[1:] or record.stages
    passes = sum(gradients_of(stage) for stage in crossed)
    spent = sum(gradients_of(stage) * pace.seconds[stage.id] for stage in crossed)
    return gradients * spent / passes if passes else 0.0
