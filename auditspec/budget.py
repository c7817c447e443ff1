"""What an audit may spend, and how it is shared out: re-running the record comes first, since nothing is
believed without it; what is left pays for estimates, their twins, and the runs that the verdicts ask for.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from auditspec.errors import UsageError
from auditspec.estimator.forecast import Pace, gradients_of, replay_cost
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.plan import expected
from auditspec.estimator.requirements import require_steps
from auditspec.how_much import most_steps
from auditspec.messages import Message, message
from auditspec.record.trajectory import Trajectory
from auditspec.spec.models import Spec

PRECISIONS = 2
"""Steps in two precisions cost twice."""
HALF = 0.5
"""Share of a budget that windows of the record may take where it does not pay for all of them."""


@dataclass(frozen=True)
class Allotment:
    """The shares of a budget, in minibatch gradients."""

    total: float
    """Infinite where there is no limit."""
    fidelity: float
    """Re-running the record, and the first steps of a run in two precisions."""
    estimates: int | None
    """Every stage's counterfactual; None: no limit."""
    reserve: float
    """Kept for exact replays of the runs that a verdict rests on."""
    seconds: float | None = None
    needed: float = 0.0
    """The smallest total under which anything can be estimated; 0 where the total goes that far."""
    windows: int | Literal["all"] = "all"
    """How many windows of the record are re-run."""

    @property
    def short(self) -> Message:
        """What to do about a total that pays for no estimate."""
        return message(
            "budget-too-small", total=self.total, fidelity=self.fidelity, needed=self.needed
        )

    def purse(self) -> Purse:
        """What is left once the record has been re-run."""
        until = None if self.seconds is None else time.monotonic() + self.seconds
        return Purse(self.total - self.fidelity, until)


@dataclass
class Purse:
    """What is left to spend, in minibatch gradients and in time."""

    left: float
    until: float | None = None
    spent: float = field(default=0.0, init=False)

    def pays(self, gradients: float) -> bool:
        """Whether that much may still be spent."""
        late = self.until is not None and time.monotonic() > self.until
        return gradients <= self.left and not (late and gradients > 0)

    def spend(self, gradients: float) -> None:
        """Take it out."""
        self.left -= gradients
        self.spent += gradients


def allot(spec: Spec, trajectory: Trajectory, terms: Terms | None = None) -> Allotment:
    """Share a spec's budget out.

    Exact replay of every stage is what the verdicts want; where the budget pays for it, it is all theirs.
    Otherwise one replay of the longest kind is put aside, if that leaves enough, and half of the rest
    goes to the estimates: the other half is their twins'. Where no steps were recorded, nothing can be replayed, and all
    of it is the estimates' and their twins'.

    Args:
        spec: names budget and method.
        trajectory: the record.
        terms: what estimates may go by besides the record, the budget left out.

    Raises:
        UsageError: if the budget does not pay for re-running the record, or for the method asked for.
    """
    stages, budget = trajectory.stages, spec.estimator.budget
    total, (windows, fidelity) = _total(spec, trajectory), windows_within(spec, trajectory)
    if math.isinf(total):
        return Allotment(total, fidelity, None, math.inf, budget.seconds, windows=windows)
    left = total - fidelity
    whole, longest = _costs(trajectory)
    estimator = expected(trajectory, spec.estimator.method, left)
    if trajectory.grade == "boundaries" and estimator.budgeted and not estimator.needs_steps:
        estimates = max(math.floor(left / estimator.with_twin), 0)
        return Allotment(total, fidelity, estimates, 0.0, budget.seconds)
    if left >= whole or not estimator.budgeted:
        if left < 0 or (estimator.exact and left < whole):
            raise _too_little(total, fidelity, whole, "exact replay")
        afforded, reserve = math.floor(left), left - whole
        return Allotment(total, fidelity, afforded, reserve, budget.seconds, windows=windows)
    require_steps(stages[1:])
    arms = Arm.each(stage.id for stage in stages[:-1])
    least = estimator.least(trajectory, arms, terms or Terms())
    twins = estimator.with_twin
    reserve = longest if (left - longest) / twins >= least else 0.0
    smallest, which = min(
        (math.ceil(twins * least), "the smallest estimate with its twin"), (whole, "exact replay")
    )
    if left <= 0:
        raise _too_little(total, fidelity, smallest, which)
    estimates = math.floor((left - reserve) / twins)
    needed = fidelity + smallest if estimates < least else 0.0
    return Allotment(total, fidelity, estimates, reserve, budget.seconds, needed, windows)


def windows_within(spec: Spec, trajectory: Trajectory) -> tuple[int | Literal["all"], float]:
    """How many windows are re-run, and what that takes at most, with the first steps of a run in two precisions.

    Where a spec leaves it open, all; or, of a budget that does not pay for that, as many as half of it pays for.
    """
    precision = spec.checks.precision
    wide = precision.examples != 0 and spec.estimator.dtype != "float64"
    compared = most_steps(precision.steps, trajectory) if wide else 0
    costs = sorted(
        (
            sum(len(step.batches) for step in stage.steps[start:stop])
            for stage, start, stop in trajectory.windows()
        ),
        reverse=True,
    )
    asked, total = spec.checks.record_fidelity.windows, _total(spec, trajectory)
    whole, beside = sum(costs), PRECISIONS * compared
    paid = sum(cost <= HALF * total for cost in accumulate(costs))
    if asked == "auto" and paid and whole + beside >= total:
        return paid, sum(costs[:paid]) + beside
    if isinstance(asked, int) and asked < len(costs):
        return asked, math.ceil(whole * asked / len(costs)) + beside
    return "all", whole + beside


def _total(spec: Spec, trajectory: Trajectory) -> float:
    """What an audit may take, in minibatch gradients; seconds at the recorded pace."""
    budget = spec.estimator.budget
    total = math.inf if budget.gradients is None else float(budget.gradients)
    if budget.seconds is None:
        return total
    pace = Pace.recorded(trajectory).seconds
    passes = sum(gradients_of(stage) for stage in trajectory.stages)
    spent = sum(gradients_of(stage) * pace[stage.id] for stage in trajectory.stages)
    return min(total, budget.seconds * passes / spent) if spent else total


def _costs(trajectory: Trajectory) -> tuple[float, float]:
    """Gradients of exact replay: of every stage, and of the stage that takes most."""
    every = replay_cost(trajectory.stages)
    return sum(every.values()), max(every.values(), default=0.0)


def _too_little(total: float, fidelity: float, needed: float, which: str) -> UsageError:
    return UsageError(
        f"the budget is {total:,.0f} gradients; re-running the record takes {fidelity:,.0f}, {which} "
        f"{needed:,.0f}",
        f"raise estimator.budget to {fidelity + math.ceil(needed):,} gradients or more, or re-run "
        "fewer windows (checks.record-fidelity.windows)",
    )
