"""Which way an effect counts: towards the behaviour's concern or away from it, and how much."""

from __future__ import annotations

from auditspec.results import BehaviorResult, Effect

GRADES = (1.0, 3.0, 10.0)
"""Multiples of the tolerance at which the matrix takes a stronger colour."""


def towards(effect: Effect, behavior: BehaviorResult) -> float:
    """The effect signed so that positive is towards the concern, in the metric's unit."""
    return behavior.concern.signed(effect.value)


def exceeds(effect: Effect, behavior: BehaviorResult) -> int:
    """1 where the whole interval lies beyond the tolerance towards the concern, -1 away, else 0."""
    if effect.low is None or effect.high is None:
        return 0
    rise = (effect.low > behavior.concern.tolerance) - (effect.high < -behavior.concern.tolerance)
    return behavior.concern.signed(rise)


def grade(effect: Effect, behavior: BehaviorResult, step: float) -> int:
    """-3 to 3: how many of `GRADES` the effect exceeds, counted in `step`s; > 0: towards the concern."""
    if step == 0:
        return 0
    ratio = towards(effect, behavior) / step
    size = sum(abs(ratio) > limit for limit in GRADES)
    return size if ratio > 0 else -size
