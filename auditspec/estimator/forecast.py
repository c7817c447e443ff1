"""Units in which estimates are forecast: gradients, seconds, bytes of a record; nothing is run.

The unit is one minibatch gradient. Seconds are those of the record's own steps, or of a step that was
measured. Memory is counted in copies of the parameters and moments that a method holds at once;
activations, which depend on the model's code, are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from auditspec.estimator.prefixes import Prefixes
from auditspec.record.trajectory import StageTrajectory, Trajectory


@dataclass(frozen=True)
class Pace:
    """Seconds of one minibatch gradient with its share of the update, by stage id."""

    seconds: Mapping[str, float]
    measured: bool = False

    @classmethod
    def recorded(cls, trajectory: Trajectory) -> Pace:
        """As the record's steps went; 0 where none is recorded."""
        return cls(
            {
                stage.id: sum(step.seconds for step in stage.steps) / max(gradients_of(stage), 1)
                for stage in trajectory.stages
            }
        )


def gradients_of(stage: StageTrajectory) -> int:
    """Minibatch gradients that one pass over a stage takes."""
    return sum(len(step.batches) for step in stage.steps)


def replay_cost(stages: Sequence[StageTrajectory]) -> dict[str, float]:
    """Gradients of each stage's exact replay: one pass over every later stage."""
    cost = [gradients_of(stage) for stage in stages]
    return {stage.id: float(sum(cost[i + 1 :])) for i, stage in enumerate(stages)}


def parameters_of(record: Trajectory) -> int:
    """Numbers in the parameters of the deployed model."""
    return sum(math.prod(info.shape) for info in record.stages[-1].parameters)


def interiors(prefixes: Prefixes) -> tuple[int, int]:
    """Ends of stages that some arms train: of all stages, and of those before the last."""
    last = len(prefixes.stages) - 1
    trained = [j for arm in prefixes.arms for j in prefixes.trained(arm)]
    return len(trained), sum(j < last for j in trained)


def state_bytes(trajectory: Trajectory) -> tuple[int, int]:
    """Bytes of the parameters and buffers, and of the largest optimizer state of any stage."""
    stages = trajectory.stages
    last = stages[-1].last
    weights = sum(map(_bytes, (*last.parameters.values(), *last.buffers.values())))
    optimizer_state = max(
        sum(
            _bytes(value)
            for slots in stage.last.optimizer_state.values()
            for value in slots.values()
            if isinstance(value, Tensor)
        )
        for stage in stages
    )
    return weights, optimizer_state


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
