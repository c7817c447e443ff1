"""From effects and checks to the verdict on each behaviour: a pure function.

The rules of a verdict, in order (docs/verdicts.md). Effects are signed towards the concern, and
their intervals are simultaneous and include the estimator's own error.

1. A gate of evidence did not pass, or there are no effects: `inconclusive`. (With fewer than ten
   evaluation examples, effects without an interval, or a gate of the estimate that did not pass for
   this behaviour, rule 5 applies at once.)
2. Every interval lies at or below the tolerance: `no-effect`. Leaving out any one stage would not
   undo more than the tolerance; stages may have improved the behaviour. If the concern arose while
   a stage trained, and stayed, rule 5 applies instead: stages can replace each other.
3. A stage's lower bound is above the tolerance, it leads with the probability asked for, which the
   evidence's grade may cap, and its effect is confirmed by exact replay: `attributed`.
4. The lower bounds of two or more stages are above the tolerance: `shared`.
5. Otherwise `inconclusive`, with what would settle it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditspec.checks.sampling import FEWEST
from auditspec.results import BehaviorResult, CheckResult, Effect, EvidenceGrade, VerdictResult

EVIDENCE_GATES = ("evidence-integrity", "optimizer-match", "record-fidelity")
ESTIMATE_GATES = {
    "refinement": "exact replay (estimator.method: replay), or a larger budget",
    "linearity": "another estimator than first-order (estimator.method: auto)",
    "precision": "an estimate in float64 (estimator.dtype: float64)",
}
"""Gates on the estimate of each behaviour, with what settles one that did not pass."""
REPLAY = "exact replay (estimator.method: replay)"
CONFIDENCE_CAPS: dict[EvidenceGrade, float] = {
    "dense": 0.99,
    "sparse": 0.97,
    "boundaries": 0.5,
    "none": 0.0,
}
"""Most confidence that evidence of a grade can carry, however clear the effects: a convention."""
SAMPLED_CAP = 0.95
"""The same where only some windows of the record were re-run."""


@dataclass(frozen=True)
class Bounds:
    """One stage's effect, signed towards the concern."""

    stage: str
    value: float
    low: float
    high: float
    leads: float
    exact: bool


@dataclass(frozen=True)
class Case:
    """Everything that a verdict on one behaviour rests on."""

    behavior: BehaviorResult
    effects: Sequence[Effect]
    checks: Mapping[str, CheckResult]
    """By id."""
    cap: float
    """Most confidence that the evidence carries."""
    leads: float
    """Probability of leading that `attributed` asks for."""

    def amount(self, value: float, *, bare: bool = False) -> str:
        """A value of the metric in words."""
        return _text(value, self.behavior.unit, bare=bare)


def decide(
    behavior: BehaviorResult,
    effects: Sequence[Effect],
    checks: Sequence[CheckResult],
    *,
    grade: EvidenceGrade,
    leads: float = 0.95,
) -> VerdictResult:
    """The verdict on one behaviour.

    Args:
        behavior: what was measured, with its concern.
        effects: of every stage on this behaviour.
        checks: every check of the audit.
        grade: of the evidence; it caps the confidence.
        leads: probability of leading that `attributed` asks for.
    """
    held = {check.id: check for check in checks}
    case = Case(behavior, effects, held, _cap(grade, held.get("record-fidelity")), leads)
    broken = _broken(case)
    if broken or not effects:
        return _verdict(
            behavior,
            "inconclusive",
            1,
            "No stage can be named: the evidence does not carry an estimate."
            if broken
            else "No stage can be named: nothing was estimated.",
            reasons=broken or [_unestimated(held)],
            settle=["the evidence named above, complete and unaltered"]
            if broken
            else ["an estimate, under the budget named above"],
        )
    bounds = _towards_concern(behavior, effects)
    if bounds is None:
        return _verdict(
            behavior,
            "inconclusive",
            5,
            "No stage can be named: the estimator's own error is unknown.",
            reasons=[f"refinement: {held['refinement'].reason}"]
            if "refinement" in held and held["refinement"].outcome != "pass"
            else ["the effects have no interval"],
            settle=[f"{REPLAY}, or of more stages (checks.spot-check.stages)"],
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
    if barred := _barred(case):
        return _verdict(
            behavior,
            "inconclusive",
            5,
            "No stage can be named: the estimate is not to be relied on.",
            reasons=[f"{gate}: {reason}" for gate, reason in barred.items()],
            settle=[ESTIMATE_GATES.get(gate, REPLAY) for gate in barred],
        )
    if all(b.high <= behavior.concern.tolerance for b in bounds):
        return _none_above(case, bounds)
    return _some_above(case, bounds)


def _unestimated(checks: Mapping[str, CheckResult]) -> str:
    """Why there are no effects though the evidence is sound, as a gate of the estimate has it."""
    reasons = [checks[gate].reason for gate in ESTIMATE_GATES if gate in checks]
    return reasons[0] if reasons else "nothing was estimated"


def _cap(grade: EvidenceGrade, fidelity: CheckResult | None) -> float:
    """Most confidence that the evidence carries, however clear the effects."""
    sampled = fidelity is not None and fidelity.coverage < 1
    return min(CONFIDENCE_CAPS[grade], SAMPLED_CAP if sampled else 1.0)


def _broken(case: Case) -> list[str]:
    """Why the evidence does not carry an estimate; what failed hides what could then not be run."""
    failed, not_run = [], []
    for gate in EVIDENCE_GATES:
        check = case.checks.get(gate)
        if check is None:
            failed.append(f"{gate}: the check is missing")
        elif check.outcome == "not-run":
            not_run.append(f"{gate}: {check.reason}")
        elif check.outcome != "pass":
            failed.append(f"{gate}: {check.reason}")
    return failed or not_run


def _barred(case: Case) -> dict[str, str]:
    """The gates of the estimate that did not pass for this behaviour, with their reasons."""
    barred = {}
    for gate in ESTIMATE_GATES:
        check = case.checks.get(gate)
        if check is None:
            barred[gate] = "the check is missing"
        elif check.outcome == "not-run" or (check.outcome != "pass" and not check.details):
            barred[gate] = check.reason
        elif check.outcome != "pass":
            lines = [
                f"{d.subject}{f': {d.note}' if d.note else ''}"
                for d in check.details
                if d.outcome != "pass" and d.behavior in (None, case.behavior.id)
            ]
            if lines:
                barred[gate] = "; ".join(lines[:3])
    if refuted := _refuted(case):
        barred["spot-check"] = refuted
    return barred


def _refuted(case: Case) -> str:
    """What the spot check held against the estimates of this behaviour, where any is still in use."""
    check = case.checks.get("spot-check")
    if check is None or check.outcome != "fail" or all(e.exact for e in case.effects):
        return ""
    lines = [
        f"{d.subject}: {d.note}"
        for d in check.details
        if d.outcome == "fail" and d.behavior in (None, case.behavior.id)
    ]
    return "; ".join(lines[:3]) or ("" if check.details else check.reason)


def _none_above(case: Case, bounds: Sequence[Bounds]) -> VerdictResult:
    """Rule 2, or rule 5 where stages can replace each other."""
    behavior, improved = case.behavior, _improved(case, bounds)
    if hidden := _hidden(behavior, case.effects):
        return _verdict(
            behavior,
            "inconclusive",
            5,
            "No stage can be named: several may suffice for it.",
            improved=improved,
            reasons=[
                f"it was {_moved(behavior)} by {', '.join(hidden)}, lies beyond the tolerance from where "
                "they began, and leaving out any one stage does not undo it"
            ],
            settle=["an audit in which the stages that share a cause are one stage"],
        )
    return _verdict(
        behavior,
        "no-effect",
        2,
        f"Leaving out any one stage would not have {_opposite(behavior)} it by more than "
        f"{case.amount(behavior.concern.tolerance)}.",
        improved=improved,
        reasons=_unread(case.effects),
    )


def _unread(effects: Sequence[Effect]) -> list[str]:
    """Stages of which it is not known what happened to the behaviour while they trained."""
    unread = [e.stage for e in effects if e.before is None or e.after is None]
    if not unread or len(unread) == len(effects):
        return []
    return [
        f"where {', '.join(unread)} began and ended could not be read: that stages replace each other is "
        "not excluded"
    ]


def _some_above(case: Case, bounds: Sequence[Bounds]) -> VerdictResult:
    """Rules 3 to 5."""
    behavior, tolerance = case.behavior, case.behavior.concern.tolerance
    improved = _improved(case, bounds)
    above = [b for b in bounds if b.low > tolerance]
    leader = max(above or bounds, key=lambda b: b.leads)
    questions = _open_questions(case, bounds, above, leader)
    if leader in above and not questions.against_the_leader:
        others = [b.stage for b in above if b is not leader]
        reasons = (
            [f"also above the tolerance, less than the leader: {', '.join(others)}"]
            if others
            else []
        )
        if case.cap < leader.leads:
            reasons.append(
                f"confidence capped at {case.cap:g}, the most that evidence of this grade carries"
            )
        return _verdict(
            behavior,
            "attributed",
            3,
            f"Stage '{leader.stage}' is answerable: it {_moved(behavior)} this by {case.amount(leader.value)} "
            f"({case.amount(leader.low, bare=True)} to {case.amount(leader.high, bare=True)}).",
            stages=(leader.stage,),
            improved=improved,
            confidence=min(leader.leads, case.cap),
            reasons=reasons,
        )
    if len(above) >= 2:
        apart = _open_questions(case, [], above, leader)
        return _verdict(
            behavior,
            "shared",
            4,
            "Shared between "
            + ", ".join(f"'{b.stage}' ({case.amount(b.value)})" for b in above)
            + f": each {_moved(behavior)} this by more than {case.amount(tolerance)}.",
            stages=tuple(b.stage for b in above),
            improved=improved,
            reasons=apart.reasons,
            settle=apart.settle,
        )
    return _verdict(
        behavior,
        "inconclusive",
        5,
        "No stage can be named with the confidence asked for.",
        improved=improved,
        reasons=questions.reasons,
        settle=questions.settle,
    )


def _improved(case: Case, bounds: Sequence[Bounds]) -> tuple[str, ...]:
    """Stages that moved the behaviour away from the concern by more than the tolerance."""
    return tuple(b.stage for b in reversed(bounds) if b.high < -case.behavior.concern.tolerance)


@dataclass(frozen=True)
class Questions:
    """What stands between the effects and a verdict that names one stage."""

    reasons: list[str]
    settle: list[str]
    against_the_leader: bool


def _open_questions(
    case: Case, bounds: Sequence[Bounds], above: Sequence[Bounds], leader: Bounds
) -> Questions:
    tolerance = case.behavior.concern.tolerance
    reasons, settle = [], []
    straddling = [b for b in bounds if b.low <= tolerance < b.high]
    if straddling:
        names = ", ".join(
            f"'{b.stage}' ({case.amount(b.low, bare=True)} to {case.amount(b.high)})"
            for b in straddling
        )
        reasons.append(
            f"towards the concern, {names} may lie on either side of the tolerance, "
            f"{case.amount(tolerance)}"
        )
        settle.append("more evaluation examples")
    known = len(reasons)
    if above and leader.leads < case.leads:
        reasons.append(
            f"'{leader.stage}' leads with probability {leader.leads:.2f}, below {case.leads:g}"
        )
        settle.append("more evaluation examples")
    if above and case.cap < case.leads:
        reasons.append(
            f"the evidence carries a confidence of at most {case.cap:g}, below {case.leads:g}"
        )
        settle.append("a training record with every step, re-run as a whole")
    if above and not leader.exact:
        reasons.append(f"the effect of '{leader.stage}' is estimated, not replayed")
        settle.append("an exact replay of the leading stage (checks.spot-check.stages)")
    if above and ("spot-check" not in case.checks or case.checks["spot-check"].outcome != "pass"):
        reasons.append("the spot check did not pass")
        settle.append("a finer estimator, or exact replay (estimator.method: replay)")
    against = len(reasons) > known
    if any(not b.exact for b in straddling):
        settle.append("exact replay of these stages (estimator.method: replay)")
    return Questions(reasons, list(dict.fromkeys(settle)), against)


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
    """Stages that moved the behaviour towards the concern, since whose start it has moved too far.

    Leaving out one of two stages that each suffice changes nothing, nor does leaving out one of many that
    each moved it a little; that is no acquittal.
    """
    sign = 1 if behavior.concern.direction == "increase" else -1
    tolerance, value = behavior.concern.tolerance, behavior.value
    return [
        f"'{e.stage}'"
        for e in effects
        if e.before is not None
        and e.after is not None
        and value is not None
        and sign * (e.after - e.before) > 0
        and sign * (value - e.before) > tolerance
    ]
