"""What an audit publishes of what it measured: behaviours, effects, and how they were estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from auditspec.behaviors.bound import Scores, Slice
from auditspec.checks.subject import Estimated
from auditspec.effects import StageEffects
from auditspec.estimator.plan import estimators
from auditspec.messages import Message
from auditspec.paths import PathEvaluator
from auditspec.results import (
    BehaviorResult,
    Contribution,
    Draws,
    Effect,
    Estimate,
    GroupResult,
    Method,
    PartyResult,
    Path,
    Tally,
)
from auditspec.spec.models import Spec
from auditspec.spot_checks import Confirmed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an audit publishes of levels and effects; where nothing was measured, the behaviours alone."""

    behaviors: tuple[BehaviorResult, ...]
    parties: tuple[PartyResult, ...] = ()
    paths: tuple[Path, ...] = ()
    draws: tuple[Draws, ...] = ()
    tallies: Mapping[str, tuple[Tally, ...]] = field(default_factory=dict)
    """By behaviour."""
    methods: tuple[Method, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    effects: tuple[Effect, ...] = ()
    contributions: tuple[Contribution, ...] = ()


def nothing_measured(spec: Spec) -> Measured:
    """The behaviours as the spec states them."""
    return Measured(behaviors=tuple(described(spec, n) for n in range(len(spec.behaviors))))


def described(spec: Spec, index: int) -> BehaviorResult:
    """A behaviour as the spec states it, before anything is measured."""
    behavior = spec.behaviors[index]
    return BehaviorResult(
        id=behavior.id,
        description=behavior.description,
        metric=behavior.metric.words,
        statistic=behavior.statistic.words,
        unit=behavior.statistic.unit(behavior.metric.unit),
        data=behavior.data,
        where=behavior.where,
        concern=behavior.concern,
    )


def measured_behavior(
    spec: Spec,
    index: int,
    paths: PathEvaluator,
    deployed: dict[str, Scores],
    base: dict[str, Scores],
) -> BehaviorResult:
    """A behaviour, measured on the deployed model.

    Args:
        spec: names it.
        index: which one it is.
        paths: reads it.
        deployed: the scores of the recorded end, by behaviour.
        base: those of the run that every other is held against.
    """
    behavior = spec.behaviors[index]
    skill = paths.skills[behavior.id]
    return described(spec, index).model_copy(
        update={
            "examples": len(base[behavior.id]),
            "value": paths.reader.slices[behavior.id].statistic.level(deployed[behavior.id]),
            "uninformed": paths.uninformed[behavior.id],
            "bounded": paths.bounded[behavior.id],
            "groups": _groups(paths.reader.slices[behavior.id], deployed[behavior.id]),
            "skill": skill.words if skill is not None else None,
        }
    )


def _groups(part: Slice, deployed: Scores) -> tuple[GroupResult, ...]:
    """The groups that are compared, then those that are left out."""
    unit = part.metric.unit
    compared = [
        GroupResult(name=g.name, examples=g.examples, unit=unit, level=g.level)
        for g in part.statistic.groups(deployed)
    ]
    left_out = [GroupResult(name=n, examples=e, unit=unit) for n, e in part.left_out]
    return (*compared, *left_out)


def effects_of(estimated: Estimated) -> tuple[Effect, ...]:
    """Every stage's effect on every behaviour, with its interval and what it is compared with."""
    base, ends, effects = estimated.base, estimated.ends, []
    for sample in estimated.samples:
        statistic, name = sample.statistic, sample.behavior
        interval = estimated.intervals[name]
        for row, (stage, reading) in enumerate(estimated.effects.items()):
            value, linear = reading.effect(name), reading.linear.get(name)
            known = bool(np.isfinite(sample.errors[row]))
            end = ends[stage]
            effects.append(
                Effect(
                    behavior=name,
                    arm=reading.counterfactual.arm.name,
                    value=value,
                    counterfactual=statistic.level(base[name]) - value,
                    low=float(interval.low[row]) if known else None,
                    high=float(interval.high[row]) if known else None,
                    error=float(sample.errors[row]) if known else None,
                    leads=float(interval.leads[row]) if known else None,
                    before=statistic.level(end[0][name]) if end else None,
                    after=statistic.level(end[1][name]) if end else None,
                    linear=None if linear is None else statistic.effect(base[name], linear),
                    exact=reading.counterfactual.exact,
                )
            )
    return tuple(effects)


def methods_of(readings: Mapping[str, StageEffects]) -> tuple[Method, ...]:
    """Those that made the counterfactuals, in the order of the list of estimators."""
    used = {reading.counterfactual.method for reading in readings.values()}
    return tuple(
        Method(name=name, title=kind.title, words=kind.words)
        for name, kind in estimators().items()
        if name in used
    )


def estimates_of(confirmed: Confirmed, left_out: Sequence[Message]) -> tuple[Estimate, ...]:
    """How every stage's counterfactual was made, and at what cost."""
    rows = []
    for choice in confirmed.choices:
        c = confirmed.readings[choice.stage].counterfactual
        rows.append(
            Estimate(
                arm=c.arm.name,
                method=c.method,
                exact=c.exact,
                reason=choice.reason,
                gradients=c.gradients,
                seconds=round(c.seconds, 3),
                cached=c.cached,
                notes=(*c.notes, *left_out),
                displacement=c.displacement,
            )
        )
    return tuple(rows)
