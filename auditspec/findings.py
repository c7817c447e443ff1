"""From verdicts to findings, limitations, and the policy gate: pure functions (docs/verdicts.md)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from auditspec.errors import Exit
from auditspec.estimator.interventions import Arm
from auditspec.messages import Message, message
from auditspec.results import (
    SEVERITIES,
    BehaviorResult,
    CheckResult,
    Estimate,
    Evidence,
    EvidenceGrade,
    Finding,
    Gate,
    Isolation,
    Limitation,
    Severity,
    VerdictResult,
)
from auditspec.spec.models import Policy, Quantization, Spec
from auditspec.verdicts import is_of_evidence

ANSWERABLE = ("attributed", "shared", "one-or-more")
"""Verdicts that name somebody."""


def findings_of(
    verdicts: Sequence[VerdictResult],
    behaviors: Sequence[BehaviorResult],
    checks: Sequence[CheckResult],
    estimates: Sequence[Estimate],
    policy: Policy,
    today: dt.date,
) -> tuple[Finding, ...]:
    """One finding for every behaviour for which at least one party is answerable.

    A suppression counts until the end of its last day.
    """
    by_id = {behavior.id: behavior for behavior in behaviors}
    suppressed = {s.behavior: s for s in policy.suppress if s.expires >= today}
    guilty = [v for v in verdicts if v.verdict in ANSWERABLE]
    return tuple(
        Finding(
            id=f"F-{number}",
            behavior=verdict.behavior,
            verdict=verdict.verdict,
            severity=by_id[verdict.behavior].concern.severity,
            parties=verdict.parties,
            statement=verdict.statement,
            alternatives=_alternatives(verdict, estimates),
            suppressed=suppressed.get(verdict.behavior),
        )
        for number, verdict in enumerate(guilty, 1)
    )


def gate_of(
    findings: Sequence[Finding],
    verdicts: Sequence[VerdictResult],
    behaviors: Sequence[BehaviorResult],
    checks: Sequence[CheckResult],
    policy: Policy,
    today: dt.date,
) -> Gate:
    """What the policy makes of it, and the exit code: 3 before 1 before 5.

    A deployed model beyond a stated limit stops a release like a finding of its severity, whether or not
    somebody is named for it.
    """
    spoiled = [check.id for check in checks if is_of_evidence(check) and check.outcome == "fail"]
    severe = [SEVERITIES.index(rule.partition(">=")[2]) for rule in policy.fail_on]

    def stops(severity: Severity) -> bool:
        return any(SEVERITIES.index(severity) >= least for least in severe)

    stopping = [f for f in findings if f.suppressed is None and stops(f.severity)]
    accepted = {s.behavior for s in policy.suppress if s.expires >= today}
    accepted |= {f.behavior for f in findings}
    beyond = [
        b for b in behaviors if b.beyond and b.id not in accepted and stops(b.concern.severity)
    ]
    open_ = [v for v in verdicts if v.verdict == "inconclusive"]
    reasons = [message("gate-check-failed", check=check) for check in spoiled]
    reasons += [
        message("gate-finding", finding=f.id, severity=f.severity, behavior=f.behavior)
        for f in stopping
    ]
    reasons += [
        message("gate-beyond-limit", severity=b.concern.severity, behavior=b.id) for b in beyond
    ]
    if policy.inconclusive == "fail":
        reasons += [message("gate-inconclusive", behavior=v.behavior) for v in open_]
    if spoiled:
        code = Exit.EVIDENCE
    elif stopping or beyond:
        code = Exit.POLICY
    elif open_ and policy.inconclusive == "fail":
        code = Exit.INCONCLUSIVE
    else:
        code = Exit.PASS
    return Gate(
        passed=code == Exit.PASS,
        exit_code=int(code),
        reasons=tuple(reasons),
        policy=_policy(policy),
    )


DISCLOSED = ("read-before-conversion", "optimizer-state-given")
"""Notes of passed lines of a check that a reader must know of."""


def limitations_of(
    *,
    evidence: Sequence[Evidence],
    grade: EvidenceGrade,
    checks: Sequence[CheckResult],
    estimates: Sequence[Estimate],
    verdicts: Sequence[VerdictResult],
    laxer: Sequence[str] = (),
    besides: Sequence[Message] = (),
) -> tuple[Limitation, ...]:
    """What the audit did not establish, most important first; `besides` is what is known of record and code."""
    messages: list[Message] = []
    loose = [e.name for e in evidence if e.state == "declared"]
    if loose:
        messages.append(message("evidence-not-pinned", artifacts=loose))
    for check in sorted(checks, key=lambda check: check.resampling):  # it matters least
        messages += _limits_of(check)
    lines = [line for check in checks for line in check.details if line.outcome == "pass"]
    messages += [n for line in lines for n in line.notes if n.code in DISCLOSED]
    if laxer:
        messages.append(message("spec-laxer", options=laxer))
    approximate = [p for e in estimates if not e.exact for p in sorted(Arm.of(e.arm).parties)]
    if approximate:
        messages.append(message("effects-are-estimates", parties=tuple(dict.fromkeys(approximate))))
    messages += besides
    if any(v.verdict == "inconclusive" for v in verdicts):
        messages.append(message("inconclusive-is-no-acquittal"))
    if estimates:
        messages += [
            message("effects-are-of-this-run"),
            message("effects-need-not-add-up"),
            message("intervals-cover-examples"),
        ]
    if grade == "sparse":
        messages.append(message("states-re-run"))
    if grade == "boundaries":
        messages.append(message("boundaries-only"))
    if grade == "regenerated":
        messages.append(message("run-made-again"))
    if grade != "none" and not any(e.signed_by for e in evidence):
        messages.append(message("record-unsigned"))
    return tuple(Limitation(id=f"L-{n}", message=m) for n, m in enumerate(messages, 1))


def limits_of_groups(behaviors: Sequence[BehaviorResult]) -> list[Message]:
    """Groups of which nothing is said, since they are too small."""
    left_out = {b.id: [g for g in b.groups if g.level is None] for b in behaviors}
    return [
        message(
            "groups-left-out",
            behavior=behavior,
            groups=tuple(group.name for group in groups),
            examples=sum(group.examples for group in groups),
        )
        for behavior, groups in left_out.items()
        if groups
    ]


def limits_of_isolation(isolation: Isolation) -> list[Message]:
    """What the audited code could do in spite of it."""
    if not isolation.process:
        return [message("code-ran-in-the-audit")]
    lacking = isolation.lacking
    return [
        *([message("code-not-kept-from", measures=lacking)] if lacking else []),
        message("code-speaks-for-its-model"),
    ]


def _limits_of(check: CheckResult) -> list[Message]:
    """What a check leaves open."""
    if check.discloses and check.outcome not in ("pass", "not-run"):
        return [
            message("data-limitation", subject=d.subject, notes=d.notes)
            for d in check.details
            if d.outcome != "pass"
        ]
    if check.outcome == "not-run":
        return [message("check-not-run", check=check.id, reasons=check.reasons)]
    if check.outcome == "inconclusive":
        return [message("check-inconclusive", check=check.id, reasons=check.reasons)]
    if check.outcome == "pass" and check.coverage < 1:
        return [
            message("check-covers", check=check.id, coverage=check.coverage, reasons=check.reasons)
        ]
    if check.outcome == "fail" and check.bars_when == "failed":
        return [message("check-failed", check=check.id, reasons=check.reasons)]
    if check.outcome == "fail" and check.bars == "nothing":
        return [message("descriptive-check-failed", check=check.id, reasons=check.reasons)]
    return []


def laxer_than_default(spec: Spec) -> list[str]:
    """Options by which a spec accepts more doubt than the defaults do."""
    lax = ["model.tolerance"] if spec.model.tolerance > 0 else []
    quantized = spec.model.conversion and spec.model.conversion.quantized
    if quantized and quantized.steps > Quantization().steps:
        lax.append("model.conversion.quantized.steps")
    return lax + [
        f"checks.{check}.{option}"
        for check, options in spec.checks.sections()
        for option in options.laxer()
    ]


def _policy(policy: Policy) -> Message:
    rules = [
        message("policy-severity", severity=rule.partition(">=")[2]) for rule in policy.fail_on
    ]
    if policy.inconclusive == "fail":
        rules.append(message("policy-no-inconclusive"))
    return message("policy-fails-on", rules=rules) if rules else message("policy-evidence-only")


def _alternatives(verdict: VerdictResult, estimates: Sequence[Estimate]) -> tuple[Message, ...]:
    approximate = [Arm.of(estimate.arm).parties for estimate in estimates if not estimate.exact]
    alternatives = [message("data-or-procedure"), message("earlier-stage-receptive")]
    if any(parties <= {*verdict.parties} for parties in approximate):
        alternatives.append(message("effect-is-estimate"))
    if verdict.masked_by:
        alternatives.append(message("fault-is-masked", parties=verdict.masked_by))
    return tuple(alternatives)
