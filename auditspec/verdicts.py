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

from auditspec.answerable.certainty import Answer, answer
from auditspec.answerable.courses import Case
from auditspec.answerable.evidence import case_of
from auditspec.answerable.roles import Named, roles_of
from auditspec.answerable.rule import MissingArmError, Outcome, Rule
from auditspec.checks.interface import FEWEST
from auditspec.estimator.interventions import (
    INITIAL,
    RECORDED,
    Arm,
    changed_stage,
    in_words,
    is_stage,
    listed,
)
from auditspec.results import (
    BehaviorResult,
    CheckResult,
    Draws,
    Ending,
    EvidenceGrade,
    PartyResult,
    Path,
    RoleResult,
    Tally,
    Verdict,
    VerdictResult,
)

EVIDENCE_GATES = ("evidence-integrity", "optimizer-match", "data-provenance", "record-fidelity")
ESTIMATE_GATES = {
    "refinement": "exact replay (estimator.method: replay), or a larger budget",
    "linearity": "another estimator than first-order (estimator.method: auto)",
    "precision": "an estimate in float64 (estimator.dtype: float64)",
}
"""Gates on the estimate of each behaviour, with what settles one that did not pass."""
REPLAY = "exact replay (estimator.method: replay), or a larger budget"
HONEST = "an objective that depends on the model and the batch alone"
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
    statement: str
    parties: frozenset[str] = frozenset()
    undetermined: frozenset[str] = frozenset()
    confidence: float | None = None
    reasons: tuple[str, ...] = ()
    reservations: tuple[str, ...] = ()
    settle: tuple[str, ...] = ()


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
    broken = _broken(checks)
    if broken or not any(path.behavior == behavior.id for path in published.paths):
        return _result(
            behavior,
            _Draft(
                "inconclusive",
                "evidence" if broken else "estimate",
                "Nobody can be named or cleared: the evidence does not carry an estimate."
                if broken
                else "Nobody can be named or cleared: nothing was estimated.",
                reasons=tuple(broken) or (_unestimated(checks),),
                settle=("the evidence named above, complete and unaltered",)
                if broken
                else ("an estimate, under a larger budget (estimator.budget)",),
            ),
        )
    if behavior.examples is not None and behavior.examples < FEWEST:
        return _result(
            behavior,
            _Draft(
                "inconclusive",
                "examples",
                "Nobody can be named or cleared: there are too few evaluation examples.",
                reasons=(f"{behavior.examples} examples, fewer than {FEWEST}",),
                settle=(f"{FEWEST} evaluation examples or more",),
            ),
        )
    case = case_of(behavior, published.parties, published.paths, published.draws)
    return _Judge(behavior, published, checks, case, tuple(tallies)).verdict()


def _unestimated(checks: Mapping[str, CheckResult]) -> str:
    """Why there are no levels though the evidence is sound, as a gate of the estimate has it."""
    reasons = [checks[gate].reason for gate in ESTIMATE_GATES if gate in checks]
    return reasons[0] if reasons else "nothing was estimated"


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
                "Nobody can be named: a run that this hangs on could not be made.",
                reasons=(f"the run {missing.arm.words} was not made",),
                settle=("a larger budget (estimator.budget), and a record that holds its steps",),
            )
            return self._with_roles(rule, None, draft)
        counts: dict[tuple[frozenset[str], str], int] = {
            (frozenset(t.parties), t.ending): t.count for t in self.tallies
        }
        found = answer(outcome, counts, self.published.resamples, self.published.level)
        if found.kind == "open":
            draft = self._open(outcome, found)
        elif found.kind == "nobody":
            draft = self._nobody(found)
        else:
            draft = self._named(outcome, found)
        reservations = (*draft.reservations, *self._reservations())
        return self._with_roles(rule, outcome, replace(draft, reservations=reservations))

    # --- the rules ----------------------------------------------------------------------------

    def _nobody(self, found: Answer) -> _Draft:
        """Rule 3."""
        behavior, concern = self.behavior, self.behavior.concern
        value = self.amount(behavior.value or 0.0)
        if concern.limit is not None:
            side = "above" if concern.rises else "below"
            return _Draft(
                "absent",
                "within",
                f"The deployed model is within the limit: {value}, not {side} {self.amount(concern.limit)}.",
            )
        known = behavior.uninformed
        if (
            known is not None
            and concern.signed((behavior.value or 0.0) - known) > concern.tolerance
        ):
            return _Draft(
                "inconclusive",
                "within",
                "Nobody can be named or cleared: the deployed model is worse than one that knows nothing, "
                "and so was every state of its training.",
                undetermined=found.undetermined,
                reasons=(
                    f"the level is {value}; a prediction that knows nothing gives {self.amount(known)}",
                    "without a limit the run's own best state is the measure, by which its beginning cannot "
                    "be judged",
                ),
                settle=("a limit (behaviors[].concern.limit)",),
            )
        if barred := self._barred():
            return _Draft(
                "inconclusive",
                "estimate",
                "Nobody can be cleared: the estimate is not to be relied on.",
                reasons=tuple(f"{gate}: {reason}" for gate, reason in barred.items()),
                settle=tuple(dict.fromkeys(ESTIMATE_GATES.get(gate, REPLAY) for gate in barred)),
            )
        return _Draft(
            "no-effect",
            "within",
            f"No worse than the best state of its own training: {value}.",
            settle=("a limit (behaviors[].concern.limit)",),
        )

    def _named(self, outcome: Outcome, found: Answer) -> _Draft:
        """Rule 4, or rule 5 where a run that it rests on was not really made."""
        estimated = sorted(arm.words for arm in runs_to_confirm(outcome) if not self._exact(arm))
        cap = cap_of(self.published.grade, self.checks.get("record-fidelity"))
        reasons, settle = [], []
        if estimated:
            reasons.append(f"the run {'; the run '.join(estimated)} is estimated, not replayed")
            reasons += [f"{gate}: {reason}" for gate, reason in self._barred().items()]
            settle.append(REPLAY)
        else:
            always = {k: v for k, v in self._barred().items() if k in ALWAYS}
            reasons += [f"{gate}: {reason}" for gate, reason in always.items()]
            settle += [ESTIMATE_GATES.get(gate, HONEST) for gate in always]
        if cap < self.published.level:
            reasons.append(
                f"the evidence carries a confidence of at most {cap:g}, below {self.published.level:g}"
            )
            settle.append("a training record with every step, re-run as a whole")
        if reasons:
            return _Draft(
                "inconclusive",
                "estimate",
                "Nobody can be named: the estimate is not to be relied on.",
                undetermined=found.parties | found.undetermined,
                reasons=tuple(reasons),
                settle=tuple(settle),
            )
        verdicts: dict[str, Verdict] = {"one": "attributed", "several": "shared"}
        if found.undetermined:
            others = listed(in_words(party) for party in self._ordered(found.undetermined))
            reasons.append(f"whether {others} had a part in it, the evaluation examples leave open")
            settle.append("more evaluation examples")
        if outcome.ending == "partly-removed":
            reasons.append(
                "a part of the excess is there without those named too, and is nobody's here"
            )
        if outcome.untested:
            others = listed(in_words(party) for party in self._ordered(outcome.untested))
            reasons.append(f"{others} raised it further; whether as a cause is not told apart")
            settle.append("reference data for the party that cannot be left out (`reference`)")
        if cap < found.share:
            reasons.append(
                f"confidence capped at {cap:g}, the most that evidence of this grade carries"
            )
        return _Draft(
            verdicts.get(found.kind, "one-or-more"),
            outcome.ending,
            self._statement(outcome, found),
            parties=found.parties,
            undetermined=found.undetermined | outcome.untested,
            confidence=min(found.share, cap),
            reasons=tuple(reasons),
            settle=tuple(settle),
        )

    def _open(self, outcome: Outcome, found: Answer) -> _Draft:
        """Rule 5."""
        within = outcome.ending == "within"
        reasons, settle = [], ["more evaluation examples"]
        if outcome.ending == "unexplained":
            statement = "Nobody can be named: the level is beyond what is acceptable, and no party is found."
            reasons.append(
                "no party's turn raised it and is missed in it: a lack of skill, or a limit out of reach"
            )
            settle = [
                "reference data or weights for the parties that cannot be left out (`reference`)",
                "a limit that clean models keep (auditspec limit)",
            ]
            if found.unexplained < self.published.level:
                reasons.append(f"so it ends in {found.unexplained:.0%} of the resamples")
                settle.insert(0, "more evaluation examples")
        elif within:
            statement = (
                "Nobody can be cleared: with other evaluation examples the answer would change."
            )
            reasons.append(
                f"in {found.share:.0%} of the resamples nobody is named, fewer than {self.published.level:.0%}"
            )
        else:
            statement = "Nobody can be named with the certainty asked for."
            reasons.append(
                f"in {found.share:.0%} of the resamples somebody is named"
                if found.share < self.published.level
                else "which of them is named changes with the evaluation examples"
            )
        missing = self.published.resamples - sum(t.count for t in self.tallies)
        if missing > 0 and not within:
            reasons.append(f"for {missing} resamples a run that the rule asked for was not made")
            settle.append("a larger budget (estimator.budget)")
        if any(not path.exact for path in self._paths()) and not within:
            settle.append(REPLAY)
        return _Draft(
            "inconclusive",
            outcome.ending,
            statement,
            undetermined=found.undetermined,
            reasons=tuple(reasons),
            settle=tuple(settle),
        )

    # --- words --------------------------------------------------------------------------------

    def _statement(self, outcome: Outcome, found: Answer) -> str:
        names = [in_words(party) for party in self._ordered(found.parties)]
        value = self.amount(self.behavior.value or 0.0)
        if found.kind == "one-or-more":
            return f"One or more of {listed(names)} are answerable for a level of {value}."
        (first, *_) = self._ordered(found.parties)
        if len(names) > 1:
            who = f"{_sentence(listed(names))} are answerable"
        elif first == INITIAL:
            who = "The fault was inherited with the initial weights"
        elif changed_stage(first) is not None:
            who = f"The fault was introduced between stages, by {names[0]}"
        else:
            who = f"{_sentence(names[0])} is answerable"
        if outcome.ending == "persists":
            return (
                f"{who}: the level was beyond what is acceptable when its turn ended, and at the end of every "
                f"later stage; it is {value}."
            )
        course = self.case.courses[outcome.removed]
        left = self.behavior.concern.signed(float(course.levels[course.last][0]))
        part = " for a part" if outcome.ending == "partly-removed" else ""
        run = outcome.removed.words
        if outcome.removed == Arm(omitted=found.parties):
            run = "without it" if len(found.parties) == 1 else "without them"
        return f"{who}{part}: {run} the level would be {self.amount(left)}, not {value}."

    def _reservations(self) -> list[str]:
        """What neither verdict nor roles clear."""
        texts = []
        first = self.case.pipeline.stages[0]
        start = next((p for p in self.published.parties if p.id == INITIAL), None)
        if self.behavior.concern.limit is None:
            texts.append(
                f"No limit is stated: the initial weights and {in_words(first)} are neither named nor cleared."
            )
        if start is not None and start.origin == "unknown":
            texts.append(
                "Nobody declares where the initial weights come from, and they are no draw of the factory: "
                "the start is unexplained."
            )
        recorded = next(p for p in self._paths() if not p.arm)
        if all(skill is None for skill in recorded.skills):
            texts.append(
                "What a model can do could not be read: whether a run without a stage is a working model was "
                "assumed, not measured."
            )
        return texts

    def amount(self, value: float) -> str:
        """A level of the metric in words."""
        return level_in_words(value, self.behavior.unit)

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

    def _barred(self) -> dict[str, str]:
        """The gates of the estimate that did not pass for this behaviour, with their reasons."""
        approximate = any(not path.exact for path in self._paths())
        barred = {}
        for gate in ESTIMATE_GATES:
            check = self.checks.get(gate)
            if check is None:
                barred[gate] = "the check is missing"
            elif check.outcome == "not-run" or (check.outcome != "pass" and not check.details):
                barred[gate] = check.reason
            elif check.outcome != "pass":
                lines = [
                    f"{d.subject}{f': {d.note}' if d.note else ''}"
                    for d in check.details
                    if d.outcome != "pass" and d.behavior in (None, self.behavior.id)
                ]
                if lines:
                    barred[gate] = "; ".join(lines[:3])
        spot = self.checks.get("spot-check")
        honest = self.checks.get("off-path")
        if honest is not None and honest.outcome == "fail":
            barred["off-path"] = honest.reason
        if approximate and spot is not None and spot.outcome == "fail":
            lines = [
                f"{d.subject}: {d.note}"
                for d in spot.details
                if d.outcome == "fail" and d.behavior in (None, self.behavior.id)
            ]
            if lines or not spot.details:
                barred["spot-check"] = "; ".join(lines[:3]) or spot.reason
        return barred

    def _exact(self, arm: Arm) -> bool:
        return all(path.exact for path in self._paths() if Arm.of(path.arm) == arm)

    def _paths(self) -> list[Path]:
        return [path for path in self.published.paths if path.behavior == self.behavior.id]

    def _ordered(self, parties: frozenset[str]) -> list[str]:
        return [party for party in self.case.pipeline.parties if party in parties]


def _broken(checks: Mapping[str, CheckResult]) -> list[str]:
    """Why the evidence does not carry an estimate; what failed hides what could then not be run."""
    failed, not_run = [], []
    for gate in EVIDENCE_GATES:
        check = checks.get(gate)
        if check is None:
            failed.append(f"{gate}: the check is missing")
        elif check.outcome == "not-run":
            not_run.append(f"{gate}: {check.reason}")
        elif check.outcome != "pass":
            failed.append(f"{gate}: {check.reason}")
    return failed or not_run


def level_in_words(value: float, unit: str) -> str:
    """A level of a metric in words; shares and probabilities in percent."""
    if unit in ("share", "probability"):
        return f"{100 * value:.3g} %".replace("-", "−")
    return f"{value:.3g} {unit}".replace("-", "−")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


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
        settle=tuple(dict.fromkeys(draft.settle)),
    )
