"""What an audit may spend, and how it is shared out: re-running the record comes first, since nothing is
believed without it; what is left pays for estimates, their twins, and the runs that the verdicts ask for.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from auditspec.errors import UsageError
from auditspec.estimator.forecast import Pace, gradients_of, replay_cost
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.plan import expected
from auditspec.estimator.requirements import require_steps
from auditspec.messages import Message, message
from auditspec.record.trajectory import Trajectory
from auditspec.spec.models import Spec

PRECISIONS = 2
"""Steps in two precisions cost twice."""


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
    goes to the estimates: the other half is their twins'.

    Args:
        spec: names budget and method.
        trajectory: the record.
        terms: what estimates may go by besides the record, the budget left out.

    Raises:
        UsageError: if the budget does not pay for re-running the record, or for the method asked for.
    """
    stages = trajectory.stages
    passes = sum(gradients_of(stage) for stage in stages)
    windows, asked = sum(1 for _ in trajectory.windows()), spec.checks.record_fidelity.windows
    share = 1.0 if asked == "all" or not windows else min(1.0, asked / windows)
    precision = spec.checks.precision
    compared = precision.steps if precision.examples and spec.estimator.dtype != "float64" else 0
    fidelity = math.ceil(passes * share) + PRECISIONS * compared
    budget = spec.estimator.budget
    total = math.inf if budget.gradients is None else float(budget.gradients)
    if budget.seconds is not None:
        pace = Pace.recorded(trajectory).seconds
        spent = sum(gradients_of(stage) * pace[stage.id] for stage in stages)
        mean = spent / passes if passes else 0.0
        total = min(total, budget.seconds / mean) if mean else total
    if math.isinf(total):
        return Allotment(total, fidelity, None, math.inf, budget.seconds)
    left = total - fidelity
    whole, longest = _costs(trajectory)
    estimator = expected(trajectory, spec.estimator.method, left)
    if left >= whole or not estimator.budgeted:
        if left < 0 or (estimator.exact and left < whole):
            raise _too_little(total, fidelity, whole, "exact replay")
        return Allotment(total, fidelity, math.floor(left), left - whole, budget.seconds)
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
    return Allotment(total, fidelity, estimates, reserve, budget.seconds, needed)


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
