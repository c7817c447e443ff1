"""What follows from published levels and checks: verdicts, findings, the gate.

An audit concludes by this function, and `verify` by the same: a packet whose verdicts, findings, or gate
are not what its own levels and checks lead to is refused.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditspec.findings import findings_of, gate_of
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Estimate,
    Finding,
    Gate,
    Tally,
    VerdictResult,
)
from auditspec.spec.models import Spec
from auditspec.verdicts import Published, decide

RESTS_ON = ("behaviors", "parties", "paths", "draws", "checks", "estimates", "verdicts")
"""Parts of the results that conclusions are drawn from; verdicts carry the tallies."""


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
        ValueError: if the levels are malformed, or contradict the value of a behaviour.
    """
    sampling = spec.checks.sampling
    published = Published(
        parties=result.parties,
        paths=result.paths,
        draws=result.draws,
        checks=result.checks,
        grade=result.evidence_grade,
        resamples=sampling.verdicts,
        level=sampling.level,
    )
    tallies = {verdict.behavior: verdict.tallies for verdict in result.verdicts}
    for behavior in result.behaviors:
        _require_one_level(behavior, result)
    return conclude(
        result.behaviors, published, tallies, result.estimates, spec, result.run.created.date()
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
