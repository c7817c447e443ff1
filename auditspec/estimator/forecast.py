"""What each estimator would cost on a record, and whether the record carries it; nothing is run.

The unit is one minibatch gradient. Seconds are those of the record's own steps, or of a step that was
measured. Memory is counted in copies of the parameters and moments that a method holds at once;
activations, which depend on the model's code, are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from auditspec.errors import EstimationError, UnsupportedError
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import Method


@dataclass(frozen=True)
class Need:
    """Something that an estimator needs of the evidence, and whether it is there."""

    what: str
    there: bool
    note: str = ""


@dataclass(frozen=True)
class Forecast:
    """The cost of estimating every stage by one method."""

    method: Method
    gradients: float
    """Minibatch gradients, all stages together."""
    seconds: float
    memory: float
    """Bytes, activations left out."""
    disk: int
    """Bytes that the cache will hold, and kept gradients of the recorded run meanwhile."""
    needs: tuple[Need, ...]

    @property
    def possible(self) -> bool:
        """Whether everything that the method needs is there."""
        return all(need.there for need in self.needs)


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


def sweep_cost(stages: Sequence[StageTrajectory], *, gated: bool) -> dict[str, float]:
    """Gradients of each stage's share of one tangent sweep.

    Every crossed step takes one gradient, which the directions share, and a Hessian-vector product,
    at 2, for each direction. The last stage needs none.

    Args:
        stages: of the whole run.
        gated: whether a direction crosses its own stage too (first-order).
    """
    share = dict.fromkeys(range(len(stages) - 1), 0.0)
    for j, crossed in enumerate(stages):
        active = [i for i in share if i < j or (i == j and gated)]
        for i in active:
            share[i] += gradients_of(crossed) * (1 / len(active) + 2)
    return {stages[i].id: round(cost, 3) for i, cost in share.items()} | {stages[-1].id: 0.0}


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


def need(what: str, check: Callable[[], object], note: str = "") -> Need:
    """A need that is met where `check` raises no estimation error; the error is the note otherwise."""
    try:
        check()
    except (EstimationError, UnsupportedError) as error:
        return Need(what, False, error.message)
    return Need(what, True, note)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
