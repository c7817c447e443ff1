"""What every estimator gives: training in one arm, and how far it ends from the recorded run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from auditspec.estimator.interventions import Arm
from auditspec.messages import Message
from auditspec.record.state import State


@dataclass(frozen=True)
class Counterfactual:
    """Training in one arm: the estimated end state, theta_K without S for an arm without S."""

    arm: Arm
    method: str
    """The estimator's name."""
    exact: bool
    state: State
    """Parameters and buffers in the estimate's precision, on the CPU; no moments. Empty where it was given up."""
    delta: dict[str, Tensor]
    """Stage embedding: theta_K of the arm minus theta_K, per parameter."""
    gradients: float
    """Cost in minibatch gradients; a Hessian-vector product counts as 2 beside its gradient."""
    seconds: float
    notes: tuple[Message, ...] = ()
    """What the method had to say about this run, such as why it fell back to a slower way."""
    cached: bool = False
    """Whether it was made by an earlier run and taken from the cache."""
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    """Numbers by which the method judges its own estimate; its docstring says which."""
    unreliable: Message | None = None
    """Why neither the method nor a twin can tell the estimate's error; None where they can."""
    path: Mapping[str, State] = field(default_factory=dict)
    """The arm's interior: parameters and buffers at the end of each later stage that it trained, by the
    stage's id, in order of training. The last is `state` itself, unless a stage left out follows it.
    Empty where the method follows displacements and not states."""
    beyond: float = 0.0
    """How far the mean of what is read of it lies beyond it, seen from its twin, in units of their distance: its error is as large a
    part of the twin's, in the same direction. 0: what is read is its own."""
    linear_reading: bool = False
    """Whether the effect on a differentiable behaviour is -grad gamma . delta by definition, and not what
    evaluating `state` gives."""

    @property
    def stage(self) -> str:
        """The id of the one stage that is left out.

        Raises:
            ValueError: for an arm that does anything else.
        """
        return self.arm.stage

    @property
    def given_up(self) -> bool:
        """Whether the method took it no further: there is no end state, and `unreliable` says why."""
        return not self.state.parameters

    @property
    def displacement(self) -> float:
        """||delta||, over all parameters."""
        return norm(self.delta)


Counterfactuals = dict[Arm, Counterfactual]
Known = Mapping[Arm, Counterfactual]
"""Arms that were made before; those made by an estimate give estimates."""


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all tensors; their order does not matter."""
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in tensors.values()))


def difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Left - right, per parameter, in left's precision."""
    return {name: tensor - right[name].to(tensor) for name, tensor in left.items()}
