"""From verdicts to findings, limitations, and the policy gate: pure functions (docs/verdicts.md)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from auditspec.errors import Exit
from auditspec.results import (
    SEVERITIES,
    BehaviorResult,
    CheckResult,
    Estimate,
    Evidence,
    EvidenceGrade,
    Finding,
    Gate,
    Limitation,
    Severity,
    VerdictResult,
)
from auditspec.spec.models import Checks, Policy, Spec
from auditspec.verdicts import EVIDENCE_GATES

ANSWERABLE = ("attributed", "shared", "one-or-more")
"""Verdicts that name somebody."""
ABOUT_DATA = ("data-provenance", "data-use")
"""Checks each of whose lines is a limitation of its own."""


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
    evidence = tuple(c.id for c in checks if c.outcome == "pass" and c.role == "gate")
    guilty = [v for v in verdicts if v.verdict in ANSWERABLE]
    return tuple(
        Finding(
            id=f"F-{number}",
            behavior=verdict.behavior,
            verdict=verdict.verdict,
            severity=by_id[verdict.behavior].concern.severity,
            parties=verdict.parties,
            statement=verdict.statement,
            evidence=evidence,
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
    held = {check.id: check.outcome for check in checks}
    spoiled = [gate for gate in EVIDENCE_GATES if held.get(gate) == "fail"]
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
    reasons = [f"{gate} failed" for gate in spoiled]
    reasons += [f"{f.id}: {f.severity} severity, {f.behavior}" for f in stopping]
    reasons += [f"beyond its limit: {b.concern.severity} severity, {b.id}" for b in beyond]
    if policy.inconclusive == "fail":
        reasons += [f"inconclusive: {v.behavior}" for v in open_]
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
        policy=_in_words(policy),
    )


def limitations_of(
    *,
    evidence: Sequence[Evidence],
    grade: EvidenceGrade,
    checks: Sequence[CheckResult],
    estimates: Sequence[Estimate],
    verdicts: Sequence[VerdictResult],
    changed_code: Sequence[str] = (),
    laxer: Sequence[str] = (),
) -> tuple[Limitation, ...]:
    """What the audit did not establish, most important first."""
    texts: list[str] = []
    loose = [e.name for e in evidence if e.state == "declared"]
    if loose:
        texts.append(f"Nothing pins the bytes of {', '.join(loose)}; they are taken as declared.")
    for check in sorted(checks, key=lambda check: check.id == "sampling"):  # it matters least
        if check.id in ABOUT_DATA and check.outcome not in ("pass", "not-run"):
            texts += [
                f"{d.subject[:1].upper()}{d.subject[1:]}: {d.note}."
                for d in check.details
                if d.outcome != "pass"
            ]
        elif check.outcome == "not-run":
            texts.append(f"The check {check.id} was not run: {check.reason}.")
        elif check.outcome == "inconclusive":
            texts.append(f"The check {check.id} is inconclusive: {check.reason}.")
        elif check.outcome == "pass" and check.coverage < 1:
            texts.append(f"The check {check.id} looked at {check.coverage:.0%}: {check.reason}.")
        elif check.outcome == "fail" and check.id in ("spot-check", "off-path"):
            texts.append(f"The check {check.id} failed: {check.reason}.")
        elif check.outcome == "fail" and check.role == "descriptive":
            texts.append(f"The check {check.id}, which decides nothing, failed: {check.reason}.")
    if laxer:
        texts.append(f"The spec asks for less than the default of {', '.join(laxer)}.")
    approximate = [e.stage for e in estimates if not e.exact]
    if approximate:
        texts.append(
            f"The effects of {', '.join(approximate)} are estimates; their error is taken from the "
            "estimator itself and from the stages that were replayed, and another stage may be worse."
        )
    if changed_code:
        texts.append(
            f"The audited code is not, byte for byte, the code that trained ({', '.join(changed_code)}); "
            "that it re-runs the record is what links the two."
        )
    if any(v.verdict == "inconclusive" for v in verdicts):
        texts.append("An inconclusive verdict is no acquittal: it names what would settle it.")
    if estimates:
        texts.append(
            "An effect is that of leaving out one whole stage of this one training run, later "
            "stages unchanged; it does not tell the stage's data from its procedure, and another "
            "run of the same recipe may differ."
        )
        texts.append(
            "Effects of different stages need not add up: stages can act together, and two stages "
            "that each suffice for a fault hide each other."
        )
        texts.append(
            "The training code ran in the auditing process; an auditor who does not trust its author "
            "reads it first."
        )
    if estimates:
        texts.append(
            "The intervals cover the choice of evaluation examples, and speak for others drawn "
            "like them; they do not cover another random seed of training."
        )
    if grade == "sparse":
        texts.append("States between the recorded ones were re-run, not read.")
    if grade == "boundaries":
        texts.append(
            "Only the states where stages begin and end are recorded: learning rates are as declared, "
            "minibatches were drawn anew, and nothing of the training could be re-run."
        )
    if grade != "none" and not any(e.signed_by for e in evidence):
        texts.append("The training record carries no signature of the trainer.")
    return tuple(Limitation(id=f"L-{n}", text=text) for n, text in enumerate(texts, 1))


def laxer_than_default(spec: Spec) -> list[str]:
    """Options by which a spec accepts more doubt than the defaults do."""
    ours, default = spec.checks, Checks()
    fidelity = ours.record_fidelity.threshold
    lax = {
        "model.tolerance": spec.model.tolerance > 0,
        "checks.record-fidelity.threshold": fidelity is not None and fidelity > 1e-4,
        "checks.refinement.threshold": ours.refinement.threshold > default.refinement.threshold,
        "checks.linearity.threshold": ours.linearity.threshold > default.linearity.threshold,
        "checks.precision.threshold": ours.precision.threshold > default.precision.threshold,
        "checks.precision.examples": ours.precision.examples < default.precision.examples,
        "checks.precision.steps": ours.precision.steps < default.precision.steps,
        "checks.sampling.level": ours.sampling.level < default.sampling.level,
        "checks.sampling.verdicts": ours.sampling.verdicts < default.sampling.verdicts,
    }
    return [name for name, is_lax in lax.items() if is_lax]


def _in_words(policy: Policy) -> str:
    rules = [f"findings of {rule.partition('>=')[2]} severity or above" for rule in policy.fail_on]
    if policy.inconclusive == "fail":
        rules.append("inconclusive verdicts")
    return f"fails on {' and on '.join(rules)}" if rules else "fails on bad evidence only"


def _alternatives(verdict: VerdictResult, estimates: Sequence[Estimate]) -> tuple[str, ...]:
    method: Mapping[str, Estimate] = {estimate.stage: estimate for estimate in estimates}
    texts = [
        "The stage's data, its procedure, or both may be the cause; the audit does not separate them.",
        "An earlier stage may have made the model receptive: effects are those of leaving out one "
        "stage with all others present.",
    ]
    if any(not method[stage].exact for stage in verdict.parties if stage in method):
        texts.append("The effect is an estimate; exact replay may give another value.")
    if verdict.masked_by:
        texts.append(
            f"The fault would be larger without {', '.join(verdict.masked_by)}, which worked "
            "against it."
        )
    return tuple(texts)
