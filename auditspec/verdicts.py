"""The verdict on each behaviour: a pure function of levels and checks (docs/verdicts.md).

An audit and `verify` call the same function: what a packet says of a behaviour follows from the levels,
draws, tallies, and checks that it publishes, or the packet is refused.

1. A gate of evidence did not pass, or nothing could be estimated: `inconclusive`.
2. Fewer than ten evaluation examples: `inconclusive`.
3. Noise in the scores alone could move the level by more than its tolerance: `inconclusive`.
4. The rule (`answerable.rule`) names nobody, and keeps doing so on resampled examples: `absent` under
   a stated limit; `no-effect` where the run's own best state stands in for one, if the deployed model is
   no worse than one that knows nothing.
5. The rule names somebody, keeps doing so, and the runs without those it names were really made
   (exact replay): `attributed`, `shared`, `one-or-more`.
6. Otherwise `inconclusive`, with what would settle it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from auditspec.answerable.certainty import FEWEST, Answer, answer
from auditspec.answerable.courses import Case
from auditspec.answerable.evidence import case_of
from auditspec.answerable.roles import Named, roles_of
from auditspec.answerable.rule import MissingArmError, Outcome, Rule
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm, changed_stage, is_stage
from auditspec.messages import Message, message, unique
from auditspec.results import (
    Bars,
    BehaviorResult,
    CheckDetail,
    CheckResult,
    Draws,
    Ending,
    EvidenceGrade,
    PartyResult,
    Path,
    Tally,
    Verdict,
    VerdictResult,
)

EVIDENCE_GATES = ("evidence-integrity", "optimizer-match", "data-provenance", "record-fidelity")
"""Checks that every audit has: results without one of them carry no verdict, whatever they say themselves."""
NOISE = "evaluation-noise"
"""The check that says how far two scorings of one model lie apart."""
REPLAY = message("settle-replay")
LIMIT = message("settle-limit")
EXAMPLES = message("settle-examples")
BUDGET = message("settle-budget")
CONFIDENCE_CAPS: dict[EvidenceGrade, float] = {
    "dense": 0.99,
    "sparse": 0.97,
    "regenerated": 0.95,
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

    @property
    def resampling(self) -> tuple[str, ...]:
        """Ids of the checks that are about those resamples."""
        return tuple(check.id for check in self.checks if check.resampling)


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
    rests_on: tuple[str, ...] = ()
    """Ids of checks beside those of the evidence."""


def decide(
    behavior: BehaviorResult, tallies: Sequence[Tally], published: Published
) -> VerdictResult:
    """The verdict on one behaviour.

    Args:
        behavior: what was measured, with its concern.
        tallies: how the rule ended on resampled examples.
        published: levels, draws, and checks.
    """
    if broken := _broken(published.checks):
        draft = _Draft(
            "inconclusive",
            "evidence",
            message("evidence-carries-no-estimate"),
            reasons=tuple(broken),
            settle=(message("settle-evidence"),),
        )
        return _result(behavior, published, draft)
    if not any(path.behavior == behavior.id for path in published.paths):
        unmeasured = _unmeasured(behavior, published.checks)
        draft = _Draft(
            "inconclusive",
            "estimate",
            message("not-measured") if unmeasured else message("nothing-estimated"),
            reasons=unmeasured or _unestimated(published.checks),
            settle=(message("settle-scores") if unmeasured else message("settle-estimate"),),
        )
        return _result(behavior, published, draft)
    if behavior.examples is not None and behavior.examples < FEWEST:
        draft = _Draft(
            "inconclusive",
            "examples",
            message("too-few-examples"),
            reasons=(message("examples-below", examples=behavior.examples, fewest=FEWEST),),
            settle=(message("settle-enough-examples", fewest=FEWEST),),
            rests_on=published.resampling,
        )
        return _result(behavior, published, draft)
    if noisy := _noisy(behavior, published.checks):
        draft = _Draft(
            "inconclusive",
            "estimate",
            message("noise-decides"),
            reasons=noisy,
            settle=(message("settle-score-again"),),
            rests_on=(NOISE,),
        )
        return _result(behavior, published, draft)
    case = case_of(behavior, published.parties, published.paths, published.draws)
    return _Judge(behavior, published, case, tuple(tallies)).verdict()


def is_of_evidence(check: CheckResult) -> bool:
    """Whether a check bars every verdict."""
    return check.bars == "all" or check.id in EVIDENCE_GATES


def _unestimated(checks: Sequence[CheckResult]) -> tuple[Message, ...]:
    """Why there are no levels though the evidence is sound, as a check of the estimate has it."""
    gates = [check for check in checks if check.bars in ("estimated", "behavior")]
    return tuple(reason for check in gates[:1] for reason in check.reasons)


def _unmeasured(behavior: BehaviorResult, checks: Sequence[CheckResult]) -> tuple[Message, ...]:
    """Why there are no scores of a behaviour that is scored elsewhere."""
    lines = _lines_of_noise(behavior, checks)
    return tuple(note for line in lines if line.outcome == "not-run" for note in line.notes)


def _noisy(behavior: BehaviorResult, checks: Sequence[CheckResult]) -> tuple[Message, ...]:
    """Why noise in the scores alone could move the level by more than its tolerance; empty where it could not."""
    lines = _lines_of_noise(behavior, checks)
    return tuple(line.notes[0] for line in lines if line.outcome == "fail")


def _unscored(
    behavior: BehaviorResult, checks: Sequence[CheckResult], arm: Arm
) -> tuple[Message, ...]:
    """That a run was made and nobody scored it; empty where it was not made either."""
    notes = (note for line in _lines_of_noise(behavior, checks) for note in line.notes)
    wanted = message("scores-lack-run", arm=arm.name)
    return tuple(note for note in notes if note == wanted)


def _lines_of_noise(behavior: BehaviorResult, checks: Sequence[CheckResult]) -> list[CheckDetail]:
    details = (detail for check in checks if check.id == NOISE for detail in check.details)
    return [detail for detail in details if detail.behavior == behavior.id]


def cap_of(grade: EvidenceGrade, checks: Sequence[CheckResult]) -> float:
    """Most confidence that the evidence carries, however clear the levels."""
    sampled = any(check.coverage < 1 for check in checks if is_of_evidence(check))
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
    case: Case
    tallies: tuple[Tally, ...]

    def verdict(self) -> VerdictResult:
        """Rules 4 to 6, and the role of every party."""
        rule = Rule(self.case)
        try:
            outcome = rule.decide()
        except MissingArmError as missing:
            unscored = _unscored(self.behavior, self.published.checks, missing.arm)
            draft = _Draft(
                "inconclusive",
                "estimate",
                message("run-missing"),
                reasons=unscored or (message("run-not-made", arm=missing.arm.name),),
                settle=(
                    message("settle-scores") if unscored else message("settle-budget-and-steps"),
                ),
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
        draft = replace(
            draft,
            reservations=(*draft.reservations, *self._reservations()),
            rests_on=(*draft.rests_on, *self.published.resampling),
        )
        return self._with_roles(rule, outcome, draft)

    # --- the rules ----------------------------------------------------------------------------

    def _nobody(self, answered: Answer) -> _Draft:
        """Rule 4."""
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
        gates = self._gates("behavior", "estimated")
        if barred := self._barred(gates):
            return _Draft(
                "inconclusive",
                "estimate",
                message("nobody-cleared-on-estimate"),
                reasons=tuple(reason for _, reason in barred),
                settle=tuple(check.remedy or REPLAY for check, _ in barred),
                rests_on=tuple(check.id for check in gates),
            )
        statement = message("no-worse-than-own-best", value=value, unit=unit)
        return _Draft(
            "no-effect",
            "within",
            statement,
            settle=(LIMIT,),
            rests_on=tuple(check.id for check in gates),
        )

    def _named(self, outcome: Outcome, answered: Answer) -> _Draft:
        """Rule 5, or rule 6 where a run that it rests on was not really made."""
        cap = cap_of(self.published.grade, self.published.checks)
        estimated = [arm for arm in runs_to_confirm(outcome) if not self._exact(arm)]
        gates = self._gates("behavior", *(("estimated",) if estimated else ()))
        if doubts := self._not_reliable(estimated, gates, cap):
            reasons, settle = doubts
            return _Draft(
                "inconclusive",
                "estimate",
                message("nobody-named-on-estimate"),
                undetermined=answered.parties | answered.undetermined,
                reasons=reasons,
                settle=settle,
                rests_on=tuple(check.id for check in gates),
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
            rests_on=tuple(check.id for check in gates),
        )

    def _not_reliable(
        self, estimated: Sequence[Arm], gates: Sequence[CheckResult], cap: float
    ) -> tuple[tuple[Message, ...], tuple[Message, ...]] | None:
        """Why what a name rests on is not to be relied on, and what settles it; None where it is.

        Args:
            estimated: the runs that the name rests on and that were not really made.
            gates: the checks that it rests on.
            cap: the most confidence that the evidence carries.
        """
        barred = self._barred(gates)
        reasons = [
            message("run-is-estimated", arm=arm.name)
            for arm in sorted(estimated, key=lambda arm: arm.name)
        ]
        reasons += [reason for _, reason in barred]
        settle = [REPLAY] if estimated else [check.remedy or REPLAY for check, _ in barred]
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
        """Rule 6."""
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
        judged: dict[str, Any] = {
            "parties": tuple(self._ordered(draft.parties)),
            "roles": roles,
            "tallies": self.tallies,
            "limit": "self" if self.behavior.concern.limit is None else "stated",
            "masked_by": tuple(r.party for r in roles if r.role in ("masks", "repaired")),
        }
        return _result(self.behavior, self.published, draft).model_copy(update=judged)

    # --- what stands in the way ---------------------------------------------------------------

    def _gates(self, *bars: Bars) -> tuple[CheckResult, ...]:
        """The checks that bar this verdict where they are in its way.

        Those that hold estimates against replays concern it only while some run of it is estimated.
        """
        estimated = any(not path.exact for path in self._paths())
        return tuple(
            check
            for check in self.published.checks
            if check.bars in bars
            and (estimated or check.bars != "estimated" or check.bars_when != "failed")
        )

    def _barred(self, gates: Sequence[CheckResult]) -> list[tuple[CheckResult, Message]]:
        """The checks that are in the way for this behaviour, with their reasons."""
        barred = []
        for check in gates:
            if not check.in_the_way:
                continue
            lines = check.doubts(self.behavior.id)
            general = bool(lines) and all(line.behavior is None for line in lines)
            if check.outcome == "not-run" or not check.details or general:
                barred.append((check, gate_reason(check)))
            elif lines:
                told = [line.line for line in lines[:3]]
                barred.append((check, message("gate-lines", gate=check.id, lines=told)))
        return barred

    def _exact(self, arm: Arm) -> bool:
        return all(path.exact for path in self._paths() if Arm.of(path.arm) == arm)

    def _paths(self) -> list[Path]:
        return [path for path in self.published.paths if path.behavior == self.behavior.id]

    def _ordered(self, parties: frozenset[str]) -> list[str]:
        return [party for party in self.case.pipeline.parties if party in parties]


def _broken(checks: Sequence[CheckResult]) -> list[Message]:
    """Why the evidence does not carry an estimate; what failed hides what could then not be run."""
    there = {check.id for check in checks}
    failed = [message("gate-missing", gate=gate) for gate in EVIDENCE_GATES if gate not in there]
    bad = [check for check in checks if _is_broken(check)]
    failed += [gate_reason(check) for check in bad if check.outcome != "not-run"]
    return failed or [gate_reason(check) for check in bad]


def _is_broken(check: CheckResult) -> bool:
    """Whether a check of the evidence stands in the way; the gates do unless they pass, whatever they say."""
    gate = check.id in EVIDENCE_GATES and check.outcome != "pass"
    return gate or (is_of_evidence(check) and check.in_the_way)


def gate_reason(check: CheckResult) -> Message:
    """A gate, and why it came out as it did."""
    return message("gate-reason", gate=check.id, reasons=check.reasons)


def _had_no_say(check: CheckResult) -> bool:
    """Whether a check that bars only where it fails had nothing to look at."""
    return check.bars_when == "failed" and check.outcome == "not-run"


def _result(behavior: BehaviorResult, published: Published, draft: _Draft) -> VerdictResult:
    """A draft as it is published, before parties and roles."""
    return VerdictResult(
        behavior=behavior.id,
        verdict=draft.verdict,
        ending=draft.ending,
        confidence=draft.confidence,
        statement=draft.statement,
        reasons=draft.reasons,
        reservations=draft.reservations,
        settle=unique(draft.settle),
        rests_on=tuple(
            c.id
            for c in published.checks
            if c.id in draft.rests_on or (is_of_evidence(c) and not _had_no_say(c))
        ),
    )
