"""Sub-batch replay: the counterfactual from every later step, on a part of its minibatch, beside the recorded run.

The counterfactual arm makes every later step with the optimizer's own update. Its gradient is computed on a part of the
minibatch only (`parts`), and corrected by a fitted part of what the recorded run's gradient on the same rows is off that
on all of them (`combined`). The recorded run goes along by its recorded gradients, so that its states need not have been kept. With every
row taken this is exact replay. Only first gradients are needed: any optimizer, model, and attention kernel.

It errs by what the rows that are not taken would have said. That is noise, as of a smaller minibatch, which makes training
worse on the whole: a bias that grows with the variance of the noise, V(q) ~ 1/q - 1 for a share q of the rows. A twin with
half of the rows has more than twice the variance, and tells the bias; to first order in V it can be taken out of what is
read (Richardson's extrapolation: `Counterfactual.beyond`). BatchNorm's statistics are those of the part (ghost statistics), corrected in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from auditspec.engine.interface import Engine
from auditspec.errors import BudgetError
from auditspec.estimator.along_the_record import AlongTheRecord, Work, held_along
from auditspec.estimator.forecast import parameters_of, state_bytes
from auditspec.estimator.interface import Context, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.requirements import require_known_statistics, steps_missing
from auditspec.estimator.step_signals import require_known_buffers
from auditspec.estimator.subbatch.combined import Control
from auditspec.estimator.subbatch.going_along import SubBatchPassage
from auditspec.estimator.subbatch.parts import parts_of, require_rows
from auditspec.estimator.subbatch.shares import LEAST, Shares
from auditspec.estimator.traveller import Traveller
from auditspec.messages import Message, message
from auditspec.record.codec import tensors_digest
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory

HALF = 0.5


@dataclass(frozen=True)
class SubBatchReplay(AlongTheRecord):
    """Replay of every step on a part of its rows, the recorded gradient as control variate, under one budget for all arms."""

    coarser: float = 1.0
    """Takes this part of the rows that the budget allows."""

    name = "sub-batch-replay"
    title = "Sub-batch replay"
    words = message("sub-batch-replay-does")
    with_twin = 1.5

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """Steps, minibatches of rows, floating buffers whose update is known, and enough gradients."""
        stages = list(record.stages)
        least = 0 if steps_missing(stages[1:]) else self.least(record, arms, terms)

        def enough() -> None:
            if terms.budget is not None and terms.budget < least:
                raise BudgetError(
                    f"the budget is {terms.budget:,} gradients; {self.name} needs {least:,}",
                    f"raise estimator.budget.gradients to {least:,} or more",
                )

        return (
            *super().requirements(record, arms, terms),
            Requirement("minibatches of rows", lambda: require_rows(stages[1:])),
            Requirement(
                "no floating buffers but BatchNorm's",
                lambda: require_known_statistics(stages, self.name),
            ),
            Requirement(f"a budget of {least:,} gradients or more", enough),
        )

    def least(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> int:
        """With the smallest share of the rows, or with every row where that is cheaper."""
        return Shares(record, arms, terms).least

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """What its rows cost under the budget; exact."""
        plan = Shares(record, arms, terms)
        share = self.coarser * plan.within(terms.budget)
        shares = plan.of_arms(share)
        weights, moments = state_bytes(record)
        memory, disk = held_along(record, plan.prefixes, weights + moments, twin=share < 1)
        return Forecast(
            {arm: round(share, 3) for arm, share in shares.items()},
            gradients=math.fsum(shares.values()),
            memory=memory,
            disk=disk,
            light=plan.light(share),
        )

    def light_step(
        self, engine: Engine, stage: StageTrajectory
    ) -> tuple[Callable[[], object], float] | None:
        """An arm's step on the fewest rows."""
        parts = parts_of(stage, LEAST)
        part = next((part for part in parts if part is not None and not part.whole), None)
        if part is None:
            return None
        run, control = Traveller.begin(engine, stage, stage.first), Control()
        theirs = run.observe(part.step)

        def make() -> None:
            ours = run.observe(part.step)
            control.fit(ours, theirs)
            run.advance(part.step, control.combined(theirs, ours, theirs))

        return make, part.gradients

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """The budget, whose gradients of the recorded run cost nothing, and where arms begin."""
        entries = Prefixes(context.record, arms, context.known).entries.values()
        return {
            "gradients": context.budget,
            "shared": sorted(context.recorded.shared),
            "begun": [[entry.stage, _digest(entry.state)] for entry in entries],
        }

    def instead_of_replay(self, record: Trajectory, gradients: float) -> Message:
        """The model is large."""
        return message("rows-over-budget", gradients=gradients, parameters=parameters_of(record))

    def twin(self) -> SubBatchReplay:
        """Half of the same rows."""
        return replace(self, coarser=HALF)

    def passage(self, context: Context, arms: Sequence[Arm]) -> SubBatchPassage:
        """The arms on their rows.

        Their diagnostics say of every later stage how well the recorded run foretold it (`Control.diagnostics`).

        Raises:
            RecordError: if the record has no such stage.
            BudgetError: if the budget is too small.
            EstimationError: if a later stage was recorded without its steps.
            UnsupportedError: if minibatches cannot be taken apart, or if training changes floating buffers other
                than BatchNorm's.
        """
        plan = Shares(context.record, arms, context)
        share = self.coarser * plan.within(context.budget)
        if share < 1:
            require_rows([context.record.stages[j] for j in plan.crossed])
        require_known_buffers(context.engine, self.name)
        words = "replaying fewer rows, for the error" if self.coarser < 1 else "replaying some rows"
        return SubBatchPassage(
            context,
            plan.prefixes,
            Work(self.name, words, math.ceil(plan.cost(share))),
            share=share,
            together=plan.together,
            beyond=_beyond(share) if self.coarser == 1 else 0.0,
        )


def _beyond(share: float) -> float:
    """V(q) / (V(q / 2) - V(q)), with V(q) = 1/q - 1 the variance that a share q of the rows adds; 0 where it adds none."""
    if share >= 1:
        return 0.0
    noise, twins = 1 / share - 1, 1 / (HALF * share) - 1
    return noise / (twins - noise)


def _digest(state: State | None) -> str:
    return "" if state is None else tensors_digest(state.parameters | state.buffers)
