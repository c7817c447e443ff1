"""Task-vector negation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, difference
from auditspec.estimator.forecast import state_bytes
from auditspec.estimator.interface import Context, Estimator, Forecast, Terms
from auditspec.estimator.interventions import Arm
from auditspec.messages import message
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory


@dataclass(frozen=True)
class TaskVector(Estimator):
    """theta_K - (theta_b - theta_a): Ilharco et al. 2023, arXiv 2212.04089."""

    name = "task-vector"
    title = "Task-vector negation"
    words = message("task-vector:does")
    sentences: ClassVar = {
        "task-vector:does": "What the stage moved is taken off the deployed weights.",
        "task-vector:taken-off": "taken off without looking at later stages",
    }
    needs_steps = False
    independent = True

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        weights, _ = state_bytes(record)
        return Forecast(dict.fromkeys(arms, 0.0), 0.0, 2.0 * weights, 2 * weights * len(arms))

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        final, made = context.run.final, {}
        for arm in arms:
            stage = context.record.stages[context.record.index(arm.stage)]
            delta = difference(stage.first.parameters, stage.last.parameters)
            weights = {n: final.parameters[n] + d for n, d in delta.items()}
            state = State(weights, final.buffers)
            notes = (message("task-vector:taken-off"),)
            made[arm] = Counterfactual(arm, self.name, False, state, delta, 0.0, 0.0, notes)
        return made
