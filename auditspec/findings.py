"""From effects and checks to verdicts, findings, limitations, and the policy gate: pure functions.

The rules of a verdict, in order (docs/verdicts.md). Effects are signed towards the concern, and
their intervals are simultaneous and include the estimator's own error.

1. A gate of evidence did not pass, or there are no effects: `inconclusive`. (With fewer than ten
   evaluation examples, or effects without an interval, rule 5 applies at once.)
2. Every interval lies at or below the tolerance: `no-effect`. Leaving out any one stage would not
   undo more than the tolerance; stages may have improved the behaviour. If the concern arose while
   a stage trained, and stayed, rule 5 applies instead: stages can replace each other.
3. A stage's lower bound is above the tolerance, it leads with the probability asked for, and its
   effect is confirmed by exact replay: `attributed`.
4. The lower bounds of two or more stages are above the tolerance: `shared`.
5. Otherwise `inconclusive`, with what would settle it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditspec.checks.sampling import FEWEST
from auditspec.errors import Exit
from auditspec.results import (
    SEVERITIES,
    BehaviorResult,
    CheckResult,
    Effect,
    Estimate,
    Evidence,
    EvidenceGrade,
    Finding,
    Gate,
    Limitation,
    VerdictResult,
)
from auditspec.spec.models import Policy

EVIDENCE_GATES = ("evidence-integrity", "optimizer-match", "record-fidelity")


@dataclass(frozen=True)
class Bounds:
    """One stage's effect, signed towards the concern."""

    stage: str
    value: float
    low: float
    high: float
    leads: float
    exact: bool


def decide(
    behavior: BehaviorResult,
    effects: Sequence[Effect],
    checks: Sequence[CheckResult],
    leads: float = 0.95,
) -> VerdictResult:
    """The verdict on one behaviour.

    Args:
        behavior: what was measured, with its concern.
        effects: of every stage on this behaviour.
        checks: every check of the audit.
        leads: probability of leading that `attributed` asks for.
    """
    tolerance, unit = behavior.concern.tolerance, behavior.unit
    held = {check.id: check for check in checks}
    broken = [
        f"{gate}: {held[gate].reason if gate in held else 'the check is missing'}"
        for gate in EVIDENCE_GATES
        if gate not in held or held[gate].outcome in ("fail", "inconclusive")
    ]
    broken = broken or [
        f"{gate}: {held[gate].reason}" for gate in EVIDENCE_GATES if held[gate].outcome != "pass"
    ]
    if broken or not effects:
        return _verdict(
            behavior,
            "inconclusive",
            1,
            "No stage can be named: the evidence does not carry an estimate.",
            reasons=broken or ["nothing was estimated"],
            settle=["the evidence named above, complete and unaltered"],
        )
    bounds = _towards_concern(behavior, effects)
    if bounds is None:
        return _verdict(
            behavior,
            "inconclusive",
            5,
            "No stage can be named: the estimator's own error is unknown.",
            reasons=["the effects have no interval"],
            settle=["an exact replay of the leading stage (checks.spot-check.stages: 1)"],
        )
    if behavior.examples is not None and behavior.examples < FEWEST:
        return _verdict(
            behavior,
            "inconclusive",
            5,
            "No stage can be named: there are too few evaluation examples.",
            reasons=[f"{behavior.examples} examples, fewer than {FEWEST}"],
            settle=["more evaluation examples"],
        )
    improved = tuple(b.stage for b in reversed(bounds) if b.high < -tolerance)
    if all(b.high <= tolerance for b in bounds):
        if hidden := _hidden(behavior, effects):
            return _verdict(
                behavior,
                "inconclusive",
                5,
                "No stage can be named: several may suffice for it.",
                improved=improved,
                reasons=[
                    f"it was {_moved(behavior)} by more than the tolerance while {', '.join(hidden)} "
                    "trained and has stayed so, yet leaving out any one stage does not undo it"
                ],
                settle=["an audit in which the stages that share a cause are one stage"],
            )
        return _verdict(
            behavior,
            "no-effect",
            2,
            f"Leaving out any one stage would not have {_opposite(behavior)} it by more than "
            f"{_text(tolerance, unit)}.",
            improved=improved,
        )
    above = [b for b in bounds if b.low > tolerance]
    leader = max(above or bounds, key=lambda b: b.leads)
    confirmed = held["spot-check"].outcome == "pass" if "spot-check" in held else False
    if leader in above and leader.leads >= leads and leader.exact and confirmed:
        others = [b.stage for b in above if b is not leader]
        return _verdict(
            behavior,
            "attributed",
            3,
            f"Stage '{leader.stage}' is answerable: it {_moved(behavior)} this by "
            f"{_text(leader.value, unit)} ({_text(leader.low, unit, bare=True)} to {_text(leader.high, unit, bare=True)}).",
            stages=(leader.stage,),
            improved=improved,
            confidence=leader.leads,
            reasons=[f"also above the tolerance, less than the leader: {', '.join(others)}"]
            if others
            else [],
        )
    if len(above) >= 2:
        reasons, settle = _open_questions([], above, leader, tolerance, unit, leads, confirmed)
        return _verdict(
            behavior,
            "shared",
            4,
            "Shared between "
            + ", ".join(f"'{b.stage}' ({_text(b.value, unit)})" for b in above)
            + f": each {_moved(behavior)} this by more than {_text(tolerance, unit)}.",
            stages=tuple(b.stage for b in above),
            improved=improved,
            reasons=reasons,
            settle=settle,
        )
    reasons, settle = _open_questions(bounds, above, leader, tolerance, unit, leads, confirmed)
    return _verdict(
        behavior,
        "inconclusive",
        5,
        "No stage can be named with the confidence asked for.",
        improved=improved,
        reasons=reasons,
        settle=settle,
    )


def findings_of(
    verdicts: Sequence[VerdictResult],
    behaviors: Sequence[BehaviorResult],
    checks: Sequence[CheckResult],
    estimates: Sequence[Estimate],
    policy: Policy,
    today: dt.date,
) -> tuple[Finding, ...]:
    """One finding for every behaviour for which at least one stage is answerable.

    A suppression counts until the end of its last day.
    """
    by_id = {behavior.id: behavior for behavior in behaviors}
    suppressed = {s.behavior: s for s in policy.suppress if s.expires >= today}
    evidence = tuple(check.id for check in checks if check.outcome == "pass")
    guilty = [v for v in verdicts if v.verdict in ("attributed", "shared")]
    return tuple(
        Finding(
            id=f"F-{number}",
            behavior=verdict.behavior,
            verdict=verdict.verdict,
            severity=by_id[verdict.behavior].concern.severity,
            stages=verdict.stages,
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
    checks: Sequence[CheckResult],
    policy: Policy,
) -> Gate:
    """What the policy makes of it, and the exit code: 3 before 1 before 5."""
    held = {check.id: check.outcome for check in checks}
    spoiled = [gate for gate in EVIDENCE_GATES if held.get(gate) == "fail"]
    limits = [SEVERITIES.index(rule.partition(">=")[2]) for rule in policy.fail_on]
    stopping = [
        finding
        for finding in findings
        if finding.suppressed is None
        and any(SEVERITIES.index(finding.severity) >= limit for limit in limits)
    ]
    open_ = [v for v in verdicts if v.verdict == "inconclusive"]
    reasons = [f"{gate} failed" for gate in spoiled]
    reasons += [f"{f.id}: {f.severity} severity, {f.behavior}" for f in stopping]
    if policy.inconclusive == "fail":
        reasons += [f"inconclusive: {v.behavior}" for v in open_]
    if spoiled:
        code = Exit.EVIDENCE
    elif stopping:
        code = Exit.POLICY
    elif open_ and policy.inconclusive == "fail":
        code = Exit.INCONCLUSIVE
    else:
        code = Exit.PASS
    return Gate(passed=code == Exit.PASS, exit_code=int(code), reasons=tuple(reasons))


def limitations_of(
    *,
    evidence: Sequence[Evidence],
    grade: EvidenceGrade,
    checks: Sequence[CheckResult],
    estimates: Sequence[Estimate],
    verdicts: Sequence[VerdictResult],
    changed_code: Sequence[str] = (),
    overlap: Sequence[str] = (),
) -> tuple[Limitation, ...]:
    """What the audit did not establish, most important first."""
    texts: list[str] = []
    loose = [e.name for e in evidence if e.state == "declared"]
    if loose:
        texts.append(f"Nothing pins the bytes of {', '.join(loose)}; they are taken as declared.")
    for check in checks:
        if check.outcome == "not-run":
            texts.append(f"The check {check.id} was not run: {check.reason}.")
        elif check.outcome == "inconclusive":
            texts.append(f"The check {check.id} is inconclusive: {check.reason}.")
    approximate = [e.stage for e in estimates if not e.exact]
    if approximate:
        texts.append(
            f"The effects of {', '.join(approximate)} are estimates by linearisation; their error "
            "is taken from the stages that were replayed."
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
    if overlap:
        texts.append(
            f"Some behaviours are read on data that a stage trained on ({', '.join(overlap)}); their "
            "intervals do not speak for new examples."
        )
    if estimates:
        texts.append(
            "The intervals cover the choice of evaluation examples, and speak for others drawn "
            "like them; they do not cover another random seed of training."
        )
        texts.append("The estimate was not repeated in another numerical precision.")
    if grade == "sparse":
        texts.append("States between the recorded ones were re-run, not read.")
    if grade != "none" and not any(e.signed_by for e in evidence):
        texts.append("The training record carries no signature of the trainer.")
    return tuple(Limitation(id=f"L-{n}", text=text) for n, text in enumerate(texts, 1))


def _verdict(
    behavior: BehaviorResult,
    verdict: str,
    rule: int,
    statement: str,
    *,
    stages: tuple[str, ...] = (),
    improved: tuple[str, ...] = (),
    confidence: float | None = None,
    reasons: Sequence[str] = (),
    settle: Sequence[str] = (),
) -> VerdictResult:
    return VerdictResult.model_validate(
        {
            "behavior": behavior.id,
            "verdict": verdict,
            "rule": rule,
            "stages": stages,
            "improved_by": improved,
            "confidence": confidence,
            "statement": statement,
            "reasons": tuple(reasons),
            "settle": tuple(settle),
        }
    )


def _towards_concern(behavior: BehaviorResult, effects: Sequence[Effect]) -> list[Bounds] | None:
    """Effects signed towards the concern, largest first; None if one has no interval."""
    up = behavior.concern.direction == "increase"
    bounds = []
    for effect in effects:
        if effect.low is None or effect.high is None:
            return None
        low, high = (effect.low, effect.high) if up else (-effect.high, -effect.low)
        value = effect.value if up else -effect.value
        bounds.append(Bounds(effect.stage, value, low, high, effect.leads or 0.0, effect.exact))
    return sorted(bounds, key=lambda b: b.value, reverse=True)


def _text(value: float, unit: str, *, bare: bool = False) -> str:
    """An amount in words; shares and probabilities in percentage points."""
    if unit in ("share", "probability"):
        value, unit = 100 * value, "percentage points"
    number = f"{value:.3g}".replace("-", "−")
    return number if bare else f"{number} {unit}"


def _moved(behavior: BehaviorResult) -> str:
    return "raised" if behavior.concern.direction == "increase" else "lowered"


def _opposite(behavior: BehaviorResult) -> str:
    return "lowered" if behavior.concern.direction == "increase" else "raised"


def _hidden(behavior: BehaviorResult, effects: Sequence[Effect]) -> list[str]:
    """Stages during which the concern arose and stayed, though their own effect is none.

    Leaving out one of two stages that each suffice changes nothing; that is no acquittal.
    """
    sign = 1 if behavior.concern.direction == "increase" else -1
    tolerance, value = behavior.concern.tolerance, behavior.value
    return [
        f"'{e.stage}'"
        for e in effects
        if e.before is not None
        and e.after is not None
        and value is not None
        and sign * (e.after - e.before) > tolerance
        and sign * (value - e.before) > tolerance
    ]


def _open_questions(
    bounds: Sequence[Bounds],
    above: Sequence[Bounds],
    leader: Bounds,
    tolerance: float,
    unit: str,
    leads: float,
    confirmed: bool,
) -> tuple[list[str], list[str]]:
    reasons, settle = [], []
    straddling = [b for b in bounds if b.low <= tolerance < b.high]
    if straddling:
        names = ", ".join(
            f"'{b.stage}' ({_text(b.low, unit, bare=True)} to {_text(b.high, unit)})"
            for b in straddling
        )
        reasons.append(
            f"towards the concern, {names} may lie on either side of the tolerance, "
            f"{_text(tolerance, unit)}"
        )
        settle.append("more evaluation examples")
    if above and leader.leads < leads:
        reasons.append(
            f"'{leader.stage}' leads with probability {leader.leads:.2f}, below {leads:g}"
        )
        settle.append("more evaluation examples")
    if above and not leader.exact:
        reasons.append(f"the effect of '{leader.stage}' is estimated, not replayed")
        settle.append("an exact replay of the leading stage (checks.spot-check.stages)")
    if above and not confirmed:
        reasons.append("the spot check did not pass")
        settle.append("a finer estimator, or exact replay (estimator.method: replay)")
    if any(not b.exact for b in straddling):
        settle.append("exact replay of these stages (estimator.method: replay)")
    return reasons, list(dict.fromkeys(settle))


def _alternatives(verdict: VerdictResult, estimates: Sequence[Estimate]) -> tuple[str, ...]:
    method: Mapping[str, Estimate] = {estimate.stage: estimate for estimate in estimates}
    texts = [
        "The stage's data, its procedure, or both may be the cause; the audit does not separate them.",
        "An earlier stage may have made the model receptive: effects are those of leaving out one "
        "stage with all others present.",
    ]
    if any(not method[stage].exact for stage in verdict.stages if stage in method):
        texts.append("The effect is an estimate; exact replay may give another value.")
    if verdict.improved_by:
        texts.append(
            f"The fault would be larger without {', '.join(verdict.improved_by)}, which worked "
            "against it."
        )
    return tuple(texts)
