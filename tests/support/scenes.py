"""Made-up runs for the rule: levels by arm, written down as a reader thinks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from auditspec.answerable.courses import Case, Concern, Course, Pipeline, end_of, start_of
from auditspec.estimator.interventions import RECORDED, Arm

TOLERANCE = 0.1
LIMIT = 0.1
"""So that x is the level itself."""


def course(
    levels: Mapping[str, float | Sequence[float]],
    skills: Mapping[str, float] | None = None,
) -> Course:
    """One run; a state that `skills` leaves out is able."""
    held = {state: np.atleast_1d(np.asarray(v, dtype=float)) for state, v in levels.items()}
    return Course(held, dict.fromkeys(levels, 1.0) | dict(skills or {}))


def run(
    stages: Sequence[str],
    levels: Sequence[float],
    *,
    initial: float = 0.0,
    omitted: Sequence[str] = (),
    starts: Mapping[str, float] | None = None,
    skills: Mapping[str, float] | None = None,
) -> Course:
    """A run by the levels at its stages' ends; random first weights know nothing."""
    held: dict[str, float] = {"initial": initial}
    left = iter(levels)
    for stage in stages:
        if starts and stage in starts:
            held[start_of(stage)] = starts[stage]
        if stage not in omitted:
            held[end_of(stage)] = next(left)
    return course(held, {"initial": 0.0} | dict(skills or {}))


def case(
    stages: Sequence[str],
    recorded: Course,
    arms: Mapping[tuple[str, ...] | Arm, Course],
    *,
    limit: float | None = LIMIT,
    uninformed: float | None = 0.1,
    bounded: bool = True,
    changed: Sequence[str] = (),
    given: bool = False,
    replaceable: Sequence[str] = (),
    draws: Mapping[str, Sequence[float]] | None = None,
) -> Case:
    """A case; arms by the stages that they leave out."""
    return Case(
        Pipeline(tuple(stages), frozenset(changed), given, frozenset(replaceable)),
        Concern(TOLERANCE, limit, uninformed, bounded),
        {RECORDED: recorded}
        | {a if isinstance(a, Arm) else Arm.without(*a): c for a, c in arms.items()},
        draws or {},
    )
