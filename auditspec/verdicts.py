"""The verdict on each behaviour: a pure function of levels and checks (docs/verdicts.md).

An audit and `verify` call the same function: what a packet says of a behaviour follows from the levels,
draws, tallies, and checks that it publishes, or the packet is refused.

1. A gate of evidence did not pass, or nothing could be estimated: `inconclusive`.
2. Fewer than ten evaluation examples: `inconclusive`.
3. The rule (`answerable.rule`) names nobody, and keeps doing so on resampled examples: `absent` under
   a stated limit; `no-effect` where the run's own best state stands in for one, if the deployed model is
   no worse than one that knows nothing.
4. The rule names somebody, keeps doing so, and the runs without those it names were really made
   (exact replay): `attributed`, `shared`, `one-or-more`.
5. Otherwise `inconclusive`, with what would settle it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from auditspec.answerable.certainty import FEWEST, Answer, answer
from auditspec.answerable.courses import Case
from auditspec.answerable.evidence import case_of
from auditspec.answerable.roles import Named, roles_of
from auditspec.answerable.rule import MissingArmError, Outcome, Rule
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm, changed_stage, is_stage
from auditspec.results import (
    BehaviorResult,
    CheckDetail,
    CheckResult,
    Draws,
    Ending,
    EvidenceGrade,
    Message,
    PartyResult,
    Path,
    RoleResult,
    Tally,
    Verdict,
    VerdictResult,
    message,
    unique,
)

EVIDENCE_GATES = ("evidence-integrity", "optimizer-match", "data-provenance", "record-fidelity")
REPLAY = message("settle-replay")
ESTIMATE_GATES = {
    "refinement": REPLAY,
    "linearity": message("settle-another-estimator"),
    "precision": message("settle-float64"),
}
"""Gates on the estimate of each behaviour, with what settles one that did not pass."""
HONEST = message("settle-honest-objective")
LIMIT = message("settle-limit")
EXAMPLES = message("settle-examples")
BUDGET = message("settle-budget")
ALWAYS = ("precision", "off-path")
"""Gates that bar a name even where every run is an exact replay."""
CONFIDENCE_CAPS: dict[EvidenceGrade, float] = {
    "dense": 0.99,
    "sparse": 0.97,
    "boundaries": 0.5,
    "none": 0.0,
}
"""Most confidence that evidence of a grade can carry, however clear the levels: a convention."""
SAMPLED_CAP = 0.95
"""The same where only some windows of the record were re-run."""


@dataclass(frozen=True)
class Published:
    """What an audit published of every run, of all behaviours."""

    parties: Sequence[PartyResult]
    paths: Sequence[Path]
    draws: Sequence[Draws]
    checks: Sequence[CheckResult]
    grade: EvidenceGrade
    """Of the evidence; it caps the confidence."""
    resamples: int
    """On how many resamples of the evaluation examples the rule was applied."""
    level: float = 0.95
    """Share of them that must agree."""


@dataclass(frozen=True)
class _Draft:
    """A verdict before the roles of those whom it does not name."""

    verdict: Verdict
    ending: Ending
    statement: Message
    parties: frozenset[str] = frozenset()
    undetermined: frozenset[str] = frozenset()
    confidence: float | None = None
    reasons: tuple[Message, ...] = ()
    reservations: tuple[Message, ...] = ()
    settle: tuple[Message, ...] = ()


def decide(
    behavior: BehaviorResult, tallies: Sequence[Tally], published: Published
) -> VerdictResult:
    """The verdict on one behaviour.

    Args:
        behavior: what was measured, with its concern.
        tallies: how the rule ended on resampled examples.
        published: levels, draws, and checks.
    """
    checks = {check.id: check for check in published.checks}
    if broken := _broken(checks):
        draft = _Draft(
            "inconclusive",
            "evidence",
            message("evidence-carries-no-estimate"),
            reasons=tuple(broken),
            settle=(message("settle-evidence"),),
        )
        return _result(behavior, draft)
    if not any(path.behavior == behavior.id for path in published.paths):
        draft = _Draft(
            "inconclusive",
            "estimate",
            message("nothing-estimated"),
            reasons=_unestimated(checks),
            settle=(message("settle-estimate"),),
        )
        return _result(behavior, draft)
    if behavior.examples is not None and behavior.examples < FEWEST:
        draft = _Draft(
            "inconclusive",
            "examples",
            message("too-few-examples"),
            reasons=(message("examples-below", examples=behavior.examples, fewest=FEWEST),),
            settle=(message("settle-enough-examples", fewest=FEWEST),),
        )
        return _result(behavior, draft)
    case = case_of(behavior, published.parties, published.paths, published.draws)
    return _Judge(behavior, published, checks, case, tuple(tallies)).verdict()


def _unestimated(checks: Mapping[str, CheckResult]) -> tuple[Message, ...]:
    """Why there are no levels though the evidence is sound, as a gate of the estimate has it."""
    gates = [gate for gate in ESTIMATE_GATES if gate in checks]
    return tuple(gate_reason(checks[gate]) for gate in gates[:1])


def cap_of(grade: EvidenceGrade, fidelity: CheckResult | None) -> float:
    """Most confidence that the evidence carries, however clear the levels."""
    sampled = fidelity is not None and fidelity.coverage < 1
    return min(CONFIDENCE_CAPS[grade], SAMPLED_CAP if sampled else 1.0)


def runs_to_confirm(outcome: Outcome) -> frozenset[Arm]:
    """The runs that must be exact before anybody is named: those without the ones who are."""
    alone = {Arm.without(party) for party in outcome.parties if is_stage(party)}
    return frozenset({outcome.removed, *(alone & outcome.arms)} - {RECORDED})


@dataclass(frozen=True)
class _Judge:
    """One behaviour behind the gates of evidence."""

    behavior: BehaviorResult
    published: Published
    checks: Mapping[str, CheckResult]
    case: Case
    tallies: tuple[Tally, ...]

    def verdict(self) -> VerdictResult:
        """Rules 3 to 5, and the role of every party."""
        rule = Rule(self.case)
        try:
            outcome = rule.decide()
        except MissingArmError as missing:
            draft = _Draft(
                "inconclusive",
                "estimate",
                message("run-missing"),
                reasons=(message("run-not-made", arm=missing.arm.name),),
                settle=(message("settle-budget-and-steps"),),
            )
            return self._with_roles(rule, None, draft)
        counts: dict[tuple[frozenset[str], str], int] = {
            (frozenset(t.parties), t.ending): t.count for t in self.tallies
        }
        answered = answer(outcome, counts, self.published.resamples, self.published.level)
        if answered.kind == "open":
            draft = self._open(outcome, answered)
        elif answered.kind == "nobody":
            draft = self._nobody(answered)
        else:
            draft = self._named(outcome, answered)
        reservations = (*draft.reservations, *self._reservations())
        return self._with_roles(rule, outcome, replace(draft, reservations=reservations))

    # --- the rules ----------------------------------------------------------------------------

    def _nobody(self, answered: Answer) -> _Draft:
        """Rule 3."""
        behavior, concern = self.behavior, self.behavior.concern
        value, unit = behavior.value or 0.0, behavior.unit
        if concern.limit is not None:
            within = message(
                "within-the-limit",
                value=value,
                direction=concern.direction,
                limit=concern.limit,
                unit=unit,
            )
            return _Draft("absent", "within", within)
        known = behavior.uninformed
        if known is not None and concern.signed(value - known) > concern.tolerance:
            return _Draft(
                "inconclusive",
                "within",
                message("worse-than-knowing-nothing"),
                undetermined=answered.undetermined,
                reasons=(
                    message("level-beside-uninformed", value=value, uninformed=known, unit=unit),
                    message("own-best-cannot-judge-beginning"),
                ),
                settle=(LIMIT,),
            )
        if barred := self._barred():
            return _Draft(
                "inconclusive",
                "estimate",
                message("nobody-cleared-on-estimate"),
                reasons=tuple(barred.values()),
                settle=tuple(ESTIMATE_GATES.get(gate, REPLAY) for gate in barred),
            )
        statement = message("no-worse-than-own-best", value=value, unit=unit)
        return _Draft("no-effect", "within", statement, settle=(LIMIT,))

    def _named(self, outcome: Outcome, answered: Answer) -> _Draft:
        """Rule 4, or rule 5 where a run that it rests on was not really made."""
        cap = cap_of(self.published.grade, self.checks.get("record-fidelity"))
        if barred := self._not_reliable(outcome, cap):
            reasons, settle = barred
            return _Draft(
                "inconclusive",
                "estimate",
                message("nobody-named-on-estimate"),
                undetermined=answered.parties | answered.undetermined,
                reasons=reasons,
                settle=settle,
            )
        reasons, settle = self._left_open(outcome, answered)
        if cap < answered.share:
            reasons = (*reasons, message("confidence-capped", cap=cap))
        verdicts: dict[str, Verdict] = {"one": "attributed", "several": "shared"}
        return _Draft(
            verdicts.get(answered.kind, "one-or-more"),
            outcome.ending,
            self._statement(outcome, answered),
            parties=answered.parties,
            undetermined=answered.undetermined | outcome.untested,
            confidence=min(answered.share, cap),
            reasons=reasons,
            settle=settle,
        )

    def _not_reliable(
        self, outcome: Outcome, cap: float
    ) -> tuple[tuple[Message, ...], tuple[Message, ...]] | None:
        """Why what a name rests on is not to be relied on, and what settles it; None where it is."""
        barred = self._barred()
        reasons, settle = [], []
        estimated = [arm for arm in runs_to_confirm(outcome) if not self._exact(arm)]
        if estimated:
            for arm in sorted(estimated, key=lambda arm: arm.name):
                reasons.append(message("run-is-estimated", arm=arm.name))
            reasons += barred.values()
            settle.append(REPLAY)
        else:
            for gate in ALWAYS:
                if gate in barred:
                    reasons.append(barred[gate])
                    settle.append(ESTIMATE_GATES.get(gate, HONEST))
        if cap < self.published.level:
            reasons.append(message("evidence-carries-less", cap=cap, level=self.published.level))
            settle.append(message("settle-whole-record"))
        return (tuple(reasons), tuple(settle)) if reasons else None

    def _left_open(
        self, outcome: Outcome, answered: Answer
    ) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """What remains open beside those who are named, and what would settle it."""
        reasons, settle = [], []
        if answered.undetermined:
            others = self._ordered(answered.undetermined)
            reasons.append(message("part-of-others-open", parties=others))
            settle.append(EXAMPLES)
        if outcome.ending == "partly-removed":
            reasons.append(message("part-is-nobodys"))
        if outcome.untested:
            others = self._ordered(outcome.untested)
            reasons.append(message("raised-further-untested", parties=others))
            settle.append(message("settle-reference-data"))
        return tuple(reasons), tuple(settle)

    def _open(self, outcome: Outcome, answered: Answer) -> _Draft:
        """Rule 5."""
        level, within = self.published.level, outcome.ending == "within"
        reasons, settle = [], [EXAMPLES]
        if outcome.ending == "unexplained":
            statement = message("no-party-found")
            reasons.append(message("no-party-raised-it"))
            settle = [message("settle-reference"), message("settle-limit-that-clean-models-keep")]
            if answered.unexplained < level:
                reasons.append(message("ends-unexplained", share=answered.unexplained))
                settle.insert(0, EXAMPLES)
        elif within:
            statement = message("clearance-hangs-on-examples")
            reasons.append(message("resamples-naming-nobody", share=answered.share, level=level))
        else:
            statement = message("name-uncertain")
            reasons.append(
                message("resamples-naming-somebody", share=answered.share)
                if answered.share < level
                else message("name-hangs-on-examples")
            )
        missing = self.published.resamples - sum(t.count for t in self.tallies)
        if missing > 0 and not within:
            reasons.append(message("resamples-without-run", resamples=missing))
            settle.append(BUDGET)
        if any(not path.exact for path in self._paths()) and not within:
            settle.append(REPLAY)
        return _Draft(
            "inconclusive",
            outcome.ending,
            statement,
            undetermined=answered.undetermined,
            reasons=tuple(reasons),
            settle=tuple(settle),
        )

    # --- statements ---------------------------------------------------------------------------

    def _statement(self, outcome: Outcome, answered: Answer) -> Message:
        parties = self._ordered(answered.parties)
        value, unit = self.behavior.value or 0.0, self.behavior.unit
        if answered.kind == "one-or-more":
            return message("one-or-more-answerable", parties=parties, value=value, unit=unit)
        who = message("who-is-answerable", parties=parties)
        if len(parties) == 1 and parties[0] == INITIAL:
            who = message("who-inherited")
        elif len(parties) == 1 and changed_stage(parties[0]) is not None:
            who = message("who-introduced", party=parties[0])
        if outcome.ending == "persists":
            return message("answerable-persists", who=who, value=value, unit=unit)
        course = self.case.courses[outcome.removed]
        left = self.behavior.concern.signed(float(course.levels[course.last][0]))
        run = message("run-of-arm", arm=outcome.removed.name)
        if outcome.removed == Arm(omitted=answered.parties):
            run = message("run-without-those", parties=parties)
        if outcome.ending == "partly-removed":
            return message(
                "answerable-for-a-part", who=who, run=run, left=left, value=value, unit=unit
            )
        return message("answerable-removed", who=who, run=run, left=left, value=value, unit=unit)

    def _reservations(self) -> list[Message]:
        """What neither verdict nor roles clear."""
        reservations = []
        first = self.case.pipeline.stages[0]
        start = next((p for p in self.published.parties if p.id == INITIAL), None)
        if self.behavior.concern.limit is None:
            reservations.append(message("beginning-not-cleared", stage=first))
        if start is not None and start.origin == "unknown":
            reservations.append(message("start-unexplained"))
        recorded = next(p for p in self._paths() if not p.arm)
        if all(skill is None for skill in recorded.skills):
            reservations.append(message("skill-unread"))
        return reservations

    def _with_roles(self, rule: Rule, outcome: Outcome | None, draft: _Draft) -> VerdictResult:
        named = Named(draft.parties, draft.undetermined, draft.verdict == "one-or-more")
        roles = roles_of(rule, outcome, named)
        return _result(
            self.behavior,
            draft,
            parties=tuple(self._ordered(draft.parties)),
            roles=roles,
            tallies=self.tallies,
            limit="self" if self.behavior.concern.limit is None else "stated",
            masked_by=tuple(r.party for r in roles if r.role in ("masks", "repaired")),
        )

    # --- what stands in the way ---------------------------------------------------------------

    def _barred(self) -> dict[str, Message]:
        """The gates of the estimate that did not pass for this behaviour, with their reasons."""
        approximate = any(not path.exact for path in self._paths())
        barred = {}
        for gate in ESTIMATE_GATES:
            check = self.checks.get(gate)
            if check is None:
                barred[gate] = message("gate-missing", gate=gate)
            elif check.outcome == "not-run" or (check.outcome != "pass" and not check.details):
                barred[gate] = gate_reason(check)
            elif check.outcome != "pass":
                lines = self._lines(check, "inconclusive", "fail", "not-run")
                if lines:
                    barred[gate] = message("gate-lines", gate=gate, lines=lines)
        spot = self.checks.get("spot-check")
        honest = self.checks.get("off-path")
        if honest is not None and honest.outcome == "fail":
            barred["off-path"] = gate_reason(honest)
        if approximate and spot is not None and spot.outcome == "fail":
            if lines := self._lines(spot, "fail"):
                barred["spot-check"] = message("gate-lines", gate=spot.id, lines=lines)
            elif not spot.details:
                barred["spot-check"] = gate_reason(spot)
        return barred

    def _lines(self, check: CheckResult, *outcomes: str) -> list[Message]:
        """The first lines of a check that bear on this behaviour and came out so."""
        lines = [
            detail_line(d)
            for d in check.details
            if d.outcome in outcomes and d.behavior in (None, self.behavior.id)
        ]
        return lines[:3]

    def _exact(self, arm: Arm) -> bool:
        return all(path.exact for path in self._paths() if Arm.of(path.arm) == arm)

    def _paths(self) -> list[Path]:
        return [path for path in self.published.paths if path.behavior == self.behavior.id]

    def _ordered(self, parties: frozenset[str]) -> list[str]:
        return [party for party in self.case.pipeline.parties if party in parties]


def _broken(checks: Mapping[str, CheckResult]) -> list[Message]:
    """Why the evidence does not carry an estimate; what failed hides what could then not be run."""
    failed, not_run = [], []
    for gate in EVIDENCE_GATES:
        check = checks.get(gate)
        if check is None:
            failed.append(message("gate-missing", gate=gate))
        elif check.outcome == "not-run":
            not_run.append(gate_reason(check))
        elif check.outcome != "pass":
            failed.append(gate_reason(check))
    return failed or not_run


def gate_reason(check: CheckResult) -> Message:
    """A gate, and why it came out as it did."""
    return message("gate-reason", gate=check.id, reasons=check.reason)


def detail_line(detail: CheckDetail) -> Message:
    """What a line of a check is about, and what was seen."""
    if not detail.note:
        return message("check-line-bare", subject=detail.subject)
    return message("check-line", subject=detail.subject, notes=detail.note)


def _result(
    behavior: BehaviorResult,
    draft: _Draft,
    *,
    parties: tuple[str, ...] = (),
    roles: tuple[RoleResult, ...] = (),
    tallies: tuple[Tally, ...] = (),
    limit: Literal["stated", "self"] | None = None,
    masked_by: tuple[str, ...] = (),
) -> VerdictResult:
    return VerdictResult(
        behavior=behavior.id,
        verdict=draft.verdict,
        ending=draft.ending,
        parties=parties,
        roles=roles,
        limit=limit,
        tallies=tallies,
        masked_by=masked_by,
        confidence=draft.confidence,
        statement=draft.statement,
        reasons=draft.reasons,
        reservations=draft.reservations,
        settle=unique(draft.settle),
    )
