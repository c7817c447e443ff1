"""What follows from published levels and checks: verdicts, findings, the gate.

An audit concludes by this function, and `verify` by the same: a packet whose verdicts, findings, or gate
are not what its own levels and checks lead to is refused.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from auditspec.findings import findings_of, gate_of
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Effect,
    Estimate,
    Finding,
    Gate,
    Tally,
    VerdictResult,
)
from auditspec.spec.models import Spec
from auditspec.verdicts import Published, decide
from auditspec.withheld import unless_withheld

ROUNDING = 1e-9
"""Most, of one and of itself, by which a sum of published numbers may miss another because of its rounding."""


@dataclass(frozen=True)
class Conclusions:
    """The answer, behaviour by behaviour, and what the policy makes of it."""

    verdicts: tuple[VerdictResult, ...]
    findings: tuple[Finding, ...]
    gate: Gate


def conclude(
    behaviors: Sequence[BehaviorResult],
    published: Published,
    tallies: Mapping[str, tuple[Tally, ...]],
    estimates: Sequence[Estimate],
    spec: Spec,
    today: dt.date,
) -> Conclusions:
    """Draw the conclusions.

    Args:
        behaviors: as measured.
        published: levels, draws, and checks.
        tallies: how the rule ended on resampled examples, by behaviour; missing: it was not applied.
        estimates: how each stage's counterfactual was obtained.
        spec: names the policy.
        today: the day by which suppressions count.
    """
    verdicts = tuple(decide(b, tallies.get(b.id, ()), published) for b in behaviors)
    findings = findings_of(verdicts, behaviors, published.checks, estimates, spec.policy, today)
    gate = gate_of(findings, verdicts, behaviors, published.checks, spec.policy, today)
    return Conclusions(verdicts, findings, gate)


def concluded_again(result: AuditResult, spec: Spec) -> Conclusions:
    """The conclusions that published results lead to.

    Raises:
        ValueError: if the levels are malformed, or contradict the value of a behaviour, or an effect.
        WithheldError: if one of them rests on something that is withheld.
    """
    tallies = {verdict.behavior: verdict.tallies for verdict in result.verdicts}
    for behavior in result.behaviors:
        _require_one_level(behavior, result)
    for effect in result.effects:
        unless_withheld(partial(_require_its_levels, effect, result), None)
    return conclude(
        result.behaviors,
        _published(result, spec),
        tallies,
        result.estimates,
        spec,
        result.run.created.date(),
    )


def decided_again(
    behavior: BehaviorResult, verdict: VerdictResult, result: AuditResult, spec: Spec
) -> VerdictResult:
    """The verdict on one behaviour to which published results lead, where another may rest on something that is withheld.

    Raises:
        ValueError: if the levels are malformed, or contradict the behaviour's value.
        WithheldError: if it rests on something that is withheld itself.
    """
    _require_one_level(behavior, result)
    return decide(behavior, verdict.tallies, _published(result, spec))


def _published(result: AuditResult, spec: Spec) -> Published:
    sampling = spec.checks.sampling
    return Published(
        parties=result.parties,
        paths=result.paths,
        draws=result.draws,
        checks=result.checks,
        grade=result.evidence_grade,
        resamples=sampling.verdicts,
        level=sampling.level,
    )


def _require_one_level(behavior: BehaviorResult, result: AuditResult) -> None:
    """The deployed model's value is the last level of the recorded run; where that was repeated, both may
    differ within the tolerance.
    """
    ends = [
        p.levels[-1] for p in result.paths if p.behavior == behavior.id and not p.arm and p.levels
    ]
    if behavior.value is None or not ends:
        return
    off = abs(ends[0] - behavior.value)
    if off > behavior.concern.tolerance:
        raise ValueError(
            f"the value of '{behavior.id}' is {behavior.value:g}, its recorded run ends at {ends[0]:g}"
        )


def _require_its_levels(effect: Effect, result: AuditResult) -> None:
    """An effect is the deployed model's value less that without the stage, which is where the run without it ends, within the
    tolerance and the error that is stated.
    """
    behavior = next(b for b in result.behaviors if b.id == effect.behavior)
    runs = [p for p in result.paths if p.behavior == behavior.id and p.arm == effect.arm]
    ends = [run.levels[-1] for run in runs if run.levels and run.exact == effect.exact]
    values = [(effect.value + effect.counterfactual, behavior.value)]
    evaluated = effect.exact or effect.value != effect.linear  # a linear reading is of no level
    if evaluated and effect.error is not None:
        values += [(effect.counterfactual, end) for end in ends]
    allowed = behavior.concern.tolerance + (effect.error or 0.0)
    for stated, level in values:
        if level is not None and abs(stated - level) > allowed + ROUNDING * (1 + abs(level)):
            raise ValueError(
                f"the effect of '{', '.join(effect.arm)}' on '{behavior.id}' is {effect.value:g}, by its levels it is "
                f"not: {stated:g} is stated for {level:g}"
            )
