"""The steps of a stage in a simulated order: as many as were made, on minibatches that are drawn.

Rows and random states follow from the order, the stage, and the step alone: whoever makes the step sees the same
(common random numbers), and a smaller share of the rows takes some of a larger one's. A stage whose steps were recorded
keeps its own minibatches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from auditspec.artifacts.datasets import Dataset
from auditspec.estimator.krylov.segments import Declared, steps_of, with_batch
from auditspec.estimator.subbatch.parts import cost_of_parts, parts_of
from auditspec.record.trajectory import StageTrajectory, Step


@dataclass(frozen=True)
class Simulation:
    """One order of the data, and how much of it is taken."""

    share: float
    """Of every minibatch's rows; 1 or more: all."""
    order: int
    """Number of the order."""
    together: int = 1
    """Fewest rows of a minibatch that are taken."""

    def as_recorded(self, stage: StageTrajectory) -> bool:
        """Whether the steps are the recorded ones, every row taken."""
        return self.share >= 1 and (bool(stage.steps) or not stage.header.steps)

    def gradients(self, stage: StageTrajectory, declared: Declared | None) -> float:
        """What one pass over a stage costs, in gradients of whole minibatches.

        Raises:
            EstimationError: if its steps were neither recorded nor declared.
        """
        if stage.steps or declared is None:
            steps_of(stage, declared)
            return cost_of_parts(stage, self.share, self.together)
        return stage.header.steps * self._rows(declared) / declared.batch

    def steps(
        self, stage: StageTrajectory, declared: Declared | None, datasets: Mapping[str, Dataset]
    ) -> Iterator[Step]:
        """The steps with their minibatches, in order.

        Raises:
            EstimationError: if they were neither recorded nor declared, or rows of the stage's data cannot be drawn.
        """
        if stage.steps or declared is None:
            steps_of(stage, declared)
            parts = parts_of(stage, self.share, self.together)
            yield from (part.step for part in parts if part is not None)
            return
        rows = self._rows(declared)
        for step in steps_of(stage, declared):
            number = self.seed(stage, step)
            yield with_batch(step, stage, declared, datasets, seed=number, rows=rows)

    def seed(self, stage: StageTrajectory, step: Step) -> int:
        """Of everything that is drawn for a step of this order."""
        text = f"{self.order} {step.index} {stage.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def _rows(self, declared: Declared) -> int:
        wanted = round(min(self.share, 1.0) * declared.batch)
        return max(wanted, min(self.together, declared.batch))
