"""What shares of the rows cost, and the largest share that a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from auditspec.errors import BudgetError
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.requirements import moving_buffers, require_steps
from auditspec.estimator.subbatch.parts import TOGETHER, cost_of_parts, taken
from auditspec.record.trajectory import Trajectory

LEAST = 1 / 12
"""Smallest share of the rows with which it is tried: with fewer, noise is all that is left."""
HALVINGS = 20


class Shares:
    """Costs of some arms, by the share q of the rows that is taken of every step.

    Args:
        record: the trainer's.
        arms: counterfactual runs.
        terms: say which arms are known, and what recorded gradients cost.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps.
    """

    def __init__(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> None:
        self.prefixes = Prefixes(record, arms, terms.known)
        self.stages = record.stages
        self.recorded = terms.recorded
        trained = {arm: self.prefixes.trained(arm) for arm in self.prefixes.arms}
        self.crossed = {
            j: served
            for j in range(len(self.stages))
            if (served := [arm for arm, indices in trained.items() if j in indices])
        }
        """Indices of the stages that arms train, with those arms."""
        require_steps([self.stages[j] for j in self.crossed])
        self.together = TOGETHER if moving_buffers(self.stages) else 1
        """Fewest rows that are taken at once."""

    def of_arms(self, share: float) -> dict[Arm, float]:
        """Gradients of each arm; what the recorded run costs is shared among those that it serves."""
        found = dict.fromkeys(self.prefixes.arms, 0.0)
        for j, served in self.crossed.items():
            parts = cost_of_parts(self.stages[j], share, self.together)
            run = parts + self.recorded.cost(self.stages[j]) if share < 1 else 0.0
            for arm in served:
                found[arm] += parts + run / len(served)
        return found

    def cost(self, share: float) -> float:
        """Gradients of all arms, and of the recorded run where not every row is taken."""
        return math.fsum(self.of_arms(share).values())

    def light(self, share: float) -> float:
        """Passes over parts of microbatches, by the arms and the recorded run, as far as they are not counted as gradients."""
        if share >= 1:
            return 0.0
        asked = 0.0
        for j, served in self.crossed.items():
            stage = self.stages[j]
            numbers = taken(stage, share, self.together)
            passes = sum(number > 0 for row in numbers for number in row)
            parts = cost_of_parts(stage, share, self.together)
            asked += (passes - parts) * (len(served) + 1)
        return asked

    @property
    def least(self) -> int:
        """The smallest budget, in whole gradients."""
        return math.ceil(min(self.cost(LEAST), self.cost(1.0)))

    def within(self, budget: int | None) -> float:
        """The largest share that a budget pays for; None: all rows.

        Raises:
            BudgetError: if it pays for none.
        """
        if budget is None or self.cost(1.0) <= budget:
            return 1.0
        if self.cost(LEAST) > budget:
            raise BudgetError(
                f"sub-batch-replay of {len(self.prefixes.arms)} runs cannot be done with {budget:,} gradients",
                f"raise estimator.budget.gradients to {self.least:,} or more",
            )
        return largest_share(self.cost, budget, LEAST)


def largest_share(cost: Callable[[float], float], budget: float, least: float) -> float:
    """The largest share from `least` to 1 whose cost is within a budget, by bisection; that of `least` is taken to be."""
    low, high = least, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low
