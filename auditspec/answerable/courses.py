"""What the rule looks at: a behaviour's level and the model's skill along every run.

A level is signed towards the concern, so that higher is worse. `Course` holds it for the evaluation
examples themselves (sample 0) and for each resample of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from auditspec.estimator.interventions import INITIAL, Arm, change_before, changed_stage

if TYPE_CHECKING:  # whoever verifies a packet needs no numpy
    import numpy as np
    from numpy.typing import NDArray

Values: TypeAlias = "NDArray[np.float64] | tuple[float, ...]"
"""[1 + R]: the level on the slice, then on each of R resamples of it."""
INITIAL_STATE = "initial"


def start_of(stage: str) -> str:
    """The state with which a stage begins after a change of the model."""
    return f"{stage}:start"


def end_of(stage: str) -> str:
    """The state with which a stage ends."""
    return f"{stage}:end"


def state_after(party: str) -> str:
    """The state that a party leaves behind when its turn ends."""
    if party == INITIAL:
        return INITIAL_STATE
    changed = changed_stage(party)
    return end_of(party) if changed is None else start_of(changed)


@dataclass(frozen=True)
class Course:
    """One behaviour along one run, from the initial weights to the end of training."""

    levels: dict[str, Values]
    """By state, in order of training; a state that cannot be read is missing, and so is the end of a stage
    that is left out."""
    skills: Mapping[str, float]
    """By state: 0 is knowing nothing, 1 the best end of a recorded stage."""

    @property
    def last(self) -> str:
        """The state at the end of training."""
        return next(reversed(self.levels))


@dataclass(frozen=True)
class Pipeline:
    """What is known of a training run besides levels."""

    stages: tuple[str, ...]
    changed: frozenset[str] = frozenset()
    """Stages before which the model was changed."""
    given: bool = False
    """Whether the initial weights come from elsewhere, or cannot be a draw of the factory."""
    replaceable: frozenset[str] = frozenset()
    """Parties with clean reference evidence: stages, the initial weights."""

    @property
    def parties(self) -> tuple[str, ...]:
        """Everyone who formed the model, in order of training."""
        found = [INITIAL]
        for stage in self.stages:
            found += [change_before(stage), stage] if stage in self.changed else [stage]
        return tuple(found)


@dataclass(frozen=True)
class Concern:
    """When a level is too high; signed towards the concern, in the metric's unit."""

    tolerance: float
    limit: float | None = None
    """None: the best state of the run itself stands in for it."""
    uninformed: float | None = None
    """Level of a prediction that knows nothing; None where it is unknown."""
    bounded: bool = False
    """Whether the metric has a smallest and a largest value."""


@dataclass(frozen=True)
class Case:
    """Everything that the rule goes by, for one behaviour."""

    pipeline: Pipeline
    concern: Concern
    courses: Mapping[Arm, Course]
    """The recorded run, the runs without one stage each, and those that the rule asked for."""
    draws: Mapping[str, Sequence[float]]
    """Levels after the initial weights, or a change of the model, were drawn again; by party."""

    @property
    def samples(self) -> int:
        """1 + the number of resamples."""
        return len(next(iter(self.courses[Arm()].levels.values())))


Ending = Literal["within", "removed", "partly-removed", "persists", "unexplained"]
