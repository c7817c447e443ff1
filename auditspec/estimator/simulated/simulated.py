"""Simulated replay: the counterfactual where the order of the data is not known, beside the run in the same simulation.

Of a stage recorded with its boundaries only, the order of its data is unknown, and so is the noise that it brought. Both
worlds are therefore trained on the same simulated minibatches (`simulation`): the run again from where the record has the
stage begin, and the counterfactual from where it stands. What the two have in common, the simulated order's noise, drops out:

    xi_b of the counterfactual = xi_b + (arm' - run')            at the end of every later stage (`anchored`)

It needs the declared schedule and batch size, the data, and first gradients only: any optimizer, model, and attention
kernel. Its error is that by which the effect depends on the order, and, under a budget, that of fewer rows. A twin in
another order with half of the rows tells both. Where the steps were recorded, nothing is simulated: with every row taken
this is exact replay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from auditspec.errors import BudgetError
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, difference
from auditspec.estimator.forecast import interiors, state_bytes
from auditspec.estimator.interface import Context, Estimator, Forecast, Requirement, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import steps_of
from auditspec.estimator.simulated.alongside import Alongside
from auditspec.estimator.simulated.passes import Passes
from auditspec.estimator.simulated.simulation import Simulation
from auditspec.estimator.subbatch.parts import require_rows
from auditspec.messages import message
from auditspec.record.codec import tensors_digest
from auditspec.record.trajectory import Trajectory

HALF = 0.5


@dataclass(frozen=True)
class SimulatedReplay(Estimator):
    """Both worlds trained on minibatches that are drawn, from the stages' boundaries alone, under one budget for all arms."""

    order: int = 0
    """Number of the simulated order."""
    coarser: float = 1.0
    """Takes this part of the rows that the budget allows."""

    name = "simulated-replay"
    title = "Simulated replay"
    words = message("simulated-replay-does")
    budgeted = True
    needs_steps = False
    several = True
    with_twin = 1.5

    def requirements(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Requirement, ...]:
        """Learning rates, recorded or declared; data; minibatches of rows; and enough gradients."""
        later = record.stages[1:]

        def known() -> None:
            for stage in later:
                steps_of(stage, terms.declared.get(stage.id))

        def enough() -> None:
            if terms.budget is not None and terms.budget < (
                least := self.least(record, arms, terms)
            ):
                raise BudgetError(
                    f"the budget is {terms.budget:,} gradients; {self.name} needs {least:,}",
                    f"raise estimator.budget.gradients to {least:,} or more",
                )

        return (
            Requirement("the steps or the declared schedule of every later stage", known),
            *super().requirements(record, arms, terms),
            Requirement("minibatches of rows", lambda: require_rows(later)),
            Requirement("a budget that pays for a share of the rows", enough),
        )

    def least(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> int:
        """With the smallest share of the rows, or with every row where that is cheaper."""
        return Passes(record, arms, terms, self.order).least

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """What its passes cost under the budget; exact.

        Held are every arm's ends, those of an estimate while its twin is made too; and of one stage, with moments, the
        simulated run, an arm's end, what is made of both, and the optimizer.
        """
        passes, simulation = self._simulation(record, arms, terms)
        shares = passes.of_arms(simulation)
        weights, moments = state_bytes(record)
        interior, before = interiors(passes.prefixes)
        simulated = not all(map(simulation.as_recorded, record.stages))
        passages = 2 if simulated else 1
        ends = passages * interior * weights
        return Forecast(
            {arm: round(share, 3) for arm, share in shares.items()},
            gradients=math.fsum(shares.values()),
            memory=ends + (passages - 1) * len(shares) * weights + 4 * (weights + moments),
            disk=ends + weights * before + 2 * (weights + moments) * simulated,
        )

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """The budget, what is declared of stages whose steps were not recorded, and where arms begin."""
        entries = Passes(context.record, arms, context, self.order).prefixes.entries.values()
        begun = [e.state.parameters | e.state.buffers if e.state else {} for e in entries]
        return {
            "gradients": context.budget,
            "declared": {
                stage.id: asdict(known) | {"schedule": known.schedule.model_dump()}
                for stage in context.record.stages
                if not stage.steps and (known := context.declared.get(stage.id)) is not None
            },
            "begun": [
                [e.stage, tensors_digest(tensors)]
                for e, tensors in zip(entries, begun, strict=True)
            ],
        }

    def twin(self) -> SimulatedReplay:
        """Another order, and half of the rows."""
        return replace(self, order=self.order + 1, coarser=HALF * self.coarser)

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals, in their order, under one budget.

        Its journal notes every pass over a stage; of what is known, an arm's end of a stage serves, except where the
        next goes on with moments, which a path does not hold.

        Returns:
            By arm. Its diagnostics say of every later stage that was simulated how far `apart` the simulated run ended
            from the recorded one, in units of what the stage moved. That run's cost is shared equally by the arms that it served.

        Raises:
            RecordError: if the record has no such stage.
            BudgetError: if the budget is too small.
            EstimationError: if a later stage has neither recorded nor declared steps, if rows of its data cannot be
                drawn, or its code fails.
            UnsupportedError: if recorded minibatches cannot be taken apart, or an arm replaces something.
        """
        self.require_arms(arms)
        passes, simulation = self._simulation(context.record, arms, context)
        if simulation.share < 1:
            require_rows(context.record.stages[1:])
        words = (
            "simulating another order, for the error" if self.order else "simulating both worlds"
        )
        total = math.ceil(math.fsum(passes.of_arms(simulation).values()))
        with context.progress.phase(words, total) as told:
            run = Alongside(context, passes.prefixes, simulation, told)
            run.run()
        stages, entries = context.record.stages, passes.prefixes.entries
        return {
            arm: Counterfactual(
                arm=arm,
                method=self.name,
                exact=entries[arm].exact
                and all(simulation.as_recorded(stages[j]) for j in passes.trained[arm]),
                state=progress.state,
                delta=difference(progress.state.parameters, context.run.final.parameters),
                gradients=progress.gradients,
                seconds=progress.seconds,
                path=progress.path,
                diagnostics=progress.diagnostics,
            )
            for arm, progress in run.arms.items()
        }

    def _simulation(
        self, record: Trajectory, arms: Sequence[Arm], terms: Terms
    ) -> tuple[Passes, Simulation]:
        passes = Passes(record, arms, terms, self.order)
        share = self.coarser * passes.within(terms.budget)
        return passes, replace(passes.whole, share=share)
