"""What simulated passes cost, and the largest share of the rows that a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from auditspec.errors import BudgetError
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.requirements import moving_buffers
from auditspec.estimator.simulated.simulation import Simulation
from auditspec.estimator.subbatch.parts import TOGETHER
from auditspec.estimator.subbatch.shares import largest_share
from auditspec.record.trajectory import Trajectory

LEAST = 0.3
"""Smallest share of the rows with which it is tried: with fewer, noise makes another optimizer of Adam, and a twin with half of
them no longer tells the error (docs/method.md)."""


class Passes:
    """Costs of some arms, by the share of the rows that is taken.

    Args:
        record: the trainer's.
        arms: counterfactual runs.
        terms: say which arms are known, and what is declared of stages.
        order: number of the simulated order.

    Raises:
        RecordError: if the record has no such stage.
    """

    def __init__(self, record: Trajectory, arms: Sequence[Arm], terms: Terms, order: int) -> None:
        self.prefixes = Prefixes(record, arms, terms.known)
        self.stages = record.stages
        self.declared = terms.declared
        self.trained = {arm: self.prefixes.trained(arm) for arm in self.prefixes.arms}
        together = TOGETHER if moving_buffers(self.stages) else 1
        self.whole = Simulation(1.0, order, together)
        """Of every row."""

    def of_arms(self, simulation: Simulation) -> dict[Arm, float]:
        """Gradients of each arm; those of the run beside them are shared among the arms that it serves.

        Raises:
            EstimationError: if steps were neither recorded nor declared.
        """
        found = dict.fromkeys(self.prefixes.arms, 0.0)
        for j, stage in enumerate(self.stages):
            served = [arm for arm, indices in self.trained.items() if j in indices]
            if served:
                once = simulation.gradients(stage, self.declared.get(stage.id))
                beside = 0.0 if simulation.as_recorded(stage) else once / len(served)
                for arm in served:
                    found[arm] += once + beside
        return found

    def cost(self, share: float) -> float:
        """Gradients of all arms and of the runs beside them."""
        return math.fsum(self.of_arms(replace(self.whole, share=share)).values())

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
        if self.least > budget:
            raise BudgetError(
                f"the budget is {budget:,} gradients; simulated-replay needs {self.least:,}",
                f"raise estimator.budget.gradients to {self.least:,} or more",
            )
        return largest_share(self.cost, budget, LEAST)
