"""The opinion: every verdict in a few facts.

The word "answerable" is used where a verdict names somebody, and nowhere else; green, only where the deployed
model is within a stated limit and every gate passed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from auditspec.errors import WithheldError
from auditspec.estimator.interventions import INITIAL, in_words, is_stage
from auditspec.report.charts import matrix_chart
from auditspec.report.charts.kit import MAX_BEHAVIORS, MAX_STAGES
from auditspec.report.lookup import Lookup, anchor
from auditspec.report.numbers import (
    confidence,
    count,
    effect_in_words,
    level,
    limit,
    moved,
    tolerance,
    unit_of,
)
from auditspec.report.parts import (
    GATE,
    HELD_BACK,
    HIDDEN,
    INHERITED,
    INTRODUCED,
    MAX_TOLD,
    ROLES,
    SEVERITY,
    SHORT,
    VERDICTS,
    WITHHELD,
    Fact,
    Muted,
    Number,
    Phrase,
    Status,
    capital,
    clean,
)
from auditspec.report.sections.interface import Section
from auditspec.report.sections.limitations import limitations
from auditspec.report.sections.roles import parties_with
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Verdict,
    VerdictResult,
)
from auditspec.withheld import is_withheld, unless_withheld

NAMING: tuple[Verdict, ...] = ("attributed", "shared", "one-or-more")
"""The verdicts that name somebody."""
SELF = (
    "No limit is stated: a fault that was there from the beginning is not seen, so neither the initial weights nor "
    "pretraining is cleared."
)
"""What is not cleared where no limit is stated, should a verdict not say it itself."""
MAX_REASONS = 12
"""Most reasons of the policy gate that are shown."""
EXACT = 1e-9
"""Within which two shares of resamples are the same."""


@dataclass(frozen=True)
class GateView:
    """What the policy makes of the verdicts."""

    status: Status
    code: Phrase
    reasons: tuple[Phrase, ...]
    more: int
    """Reasons that are only in results.json."""
    policy: Phrase


@dataclass(frozen=True)
class OpinionView:
    """The verdicts, and what a reader must know beside them."""

    gate: GateView
    verdicts: tuple[VerdictView, ...]
    more: int
    """Behaviours that are only in results.json."""
    matrix: str | None
    """None where it rests on something withheld."""
    left_out: str
    """What the pictures leave out because there is too much of it; empty where nothing is."""
    limitation: Phrase


class Opinion(Section):
    """Opinion."""

    id = "opinion"
    title = "Opinion"
    shows = ("verdicts", "gate")

    def view(self, known: Lookup) -> OpinionView:
        """The policy gate, every verdict in a few facts, their picture, and the main limitation."""
        result = known.result
        shown = result.behaviors[:MAX_TOLD]
        return OpinionView(
            gate=unless_withheld(partial(_gate, known), NO_GATE),
            verdicts=tuple(verdict_view(known, behavior, i) for i, behavior in enumerate(shown)),
            more=len(result.behaviors) - len(shown),
            matrix=unless_withheld(partial(matrix_chart, result, "matrix"), None),
            left_out=_left_out(result),
            limitation=unless_withheld(partial(_first_limitation, known), (HIDDEN,)),
        )


def _first_limitation(known: Lookup) -> Phrase:
    return next(iter(limitations(known)), Fact("", ())).value


def _gate(known: Lookup) -> GateView:
    gate = known.result.gate
    return GateView(
        GATE[gate.passed],
        (Number(str(gate.exit_code), gate.exit_code, "/gate/exit_code"),),
        tuple(known.words.each(gate.reasons[:MAX_REASONS], "/gate/reasons")),
        max(0, len(gate.reasons) - MAX_REASONS),
        known.words.sentence(gate.policy, "/gate/policy"),
    )


def _left_out(result: AuditResult) -> str:
    """Which part of a very large audit the pictures show."""
    sizes = (
        (len(result.stages), MAX_STAGES, "stages"),
        (len(result.behaviors), MAX_BEHAVIORS, "behaviours"),
    )
    parts = [f"the first {limit} of {size} {name}" for size, limit, name in sizes if size > limit]
    return f"Pictures show {' and '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class VerdictView:
    """One behaviour's verdict, as the opinion shows it."""

    anchor: str
    behavior: str
    title: str
    status: Status
    severity: Status
    facts: tuple[Fact, ...]


NO_GATE = GateView(WITHHELD, (HIDDEN,), (), 0, (HIDDEN,))
"""Where any of it is withheld: an outcome without its reasons would be another one."""


def tally(known: Lookup) -> tuple[tuple[Status, int], ...]:
    """How many behaviours have each verdict, without the verdicts that none has; who is named first."""
    if is_withheld(known.result.behaviors):
        return ((WITHHELD, 1),)
    counts = Counter(
        unless_withheld(partial(_status_on, known, behavior), WITHHELD)
        for behavior in known.result.behaviors
    )
    attributed, *others = VERDICTS.values()
    order = (attributed, INHERITED, INTRODUCED, *others, HELD_BACK, WITHHELD)
    return tuple((status, counts[status]) for status in order if counts[status])


def _status_on(known: Lookup, behavior: BehaviorResult) -> Status:
    return status_of(known, behavior.id)


def status_of(known: Lookup, behavior: str) -> Status:
    """The verdict in a word; green only for what is within a stated limit with every gate passed."""
    verdict, _ = known.verdicts.entry(behavior)
    if verdict is None:
        return VERDICTS["inconclusive"]
    if verdict.verdict == "attributed" and verdict.parties:
        party = verdict.parties[0]
        if party == INITIAL:
            return INHERITED
        return VERDICTS["attributed"] if is_stage(party) else INTRODUCED
    if verdict.verdict == "absent":
        gates = any(check.bars != "nothing" for check in known.result.checks)
        clear = verdict.limit == "stated" and gates and not known.open_gates(behavior)
        return VERDICTS["absent"] if clear else HELD_BACK
    return VERDICTS[verdict.verdict]


def verdict_view(known: Lookup, behavior: BehaviorResult, index: int) -> VerdictView:
    """One behaviour's verdict: who is named and for how much, where the model stands, how sure that is."""
    if is_withheld(behavior):
        return VerdictView(anchor(index), HIDDEN, HIDDEN, WITHHELD, WITHHELD, ())
    try:
        facts = _facts(known, behavior, index)
    except WithheldError as error:
        facts = [Fact("Withheld", (f"this verdict cannot be told without {error.pointer}",))]
    return VerdictView(
        anchor=anchor(index),
        behavior=clean(behavior.id, SHORT),
        title=clean(behavior.description, 240),
        status=unless_withheld(partial(_status_on, known, behavior), WITHHELD),
        severity=unless_withheld(lambda: SEVERITY[behavior.concern.severity], WITHHELD),
        facts=tuple(facts),
    )


def _facts(known: Lookup, behavior: BehaviorResult, index: int) -> list[Fact]:
    verdict, ref = known.verdicts.entry(behavior.id)
    if verdict is None:
        return [Fact("Why", ("no verdict was recorded",))]
    return [
        *_answer(known, behavior, verdict, ref),
        Fact("Deployed model", stands(behavior, f"/behaviors/{index}", verdict)),
        *_certainty(known, verdict, ref),
        *_beside(known, behavior, verdict, ref),
    ]


def _answer(
    known: Lookup, behavior: BehaviorResult, verdict: VerdictResult, ref: str
) -> list[Fact]:
    """Who is named and for how much, or why nobody is."""
    if verdict.verdict in NAMING:
        several = verdict.verdict == "one-or-more"
        named = Fact(
            "One or more of" if several else "Answerable", (known.owned(verdict.parties) or "–",)
        )
        alone = len(verdict.parties) == 1
        amounts = (
            Fact(
                "How much" if alone else _heading(party),
                _amount(known, behavior, verdict, ref, party, role=not (alone or several)),
            )
            for party in verdict.parties
        )
        return [named, *amounts, *_otherwise(known, behavior, verdict)]
    if verdict.verdict == "absent":
        return []
    if verdict.verdict == "no-effect":
        place = f"{known.behaviors[behavior.id][1]}/concern/tolerance"
        allowed = tolerance(behavior.concern.tolerance, place, unit_of(behavior.unit))
        better = "no state of the run that can be compared is better by more than "
        return [Fact("Meaning", (better, *allowed))]
    return [
        Fact(
            "Why",
            known.words.clauses(verdict.reasons, f"{ref}/reasons")
            or known.words.sentence(verdict.statement, f"{ref}/statement"),
        ),
        Fact(
            "What would settle it",
            known.words.clauses(verdict.settle, f"{ref}/settle") or ("not stated",),
        ),
    ]


def _amount(
    known: Lookup,
    behavior: BehaviorResult,
    verdict: VerdictResult,
    ref: str,
    party: str,
    *,
    role: bool,
) -> Phrase:
    """What a named party did: the effect of a stage, or the rise in the turn of what cannot be left out."""
    unit, at = unit_of(behavior.unit), {r.party: i for i, r in enumerate(verdict.roles)}
    item = verdict.roles[at[party]] if party in at else None
    head: Phrase = (f"{ROLES[item.role].word.lower()}; ",) if role and item else ()
    known_effect = known.effect(behavior.id, f"omit {party}")
    if known_effect is not None and verdict.ending != "persists":
        effect, place = known_effect
        exact = "; exact counterfactual" if effect.exact else "; estimated counterfactual"
        return (*head, *effect_in_words(effect, place, unit), Muted(exact))
    if item is None or item.rise is None:
        return (*head, "the amount is not in the results")
    place = f"{ref}/roles/{at[party]}/rise"
    over = "limit" if verdict.limit == "stated" else "run’s own best state"
    grew = moved(item.rise, place, unit, "grew by", "shrank by")
    return (*head, f"the excess over the {over} ", *grew, " with it")


def _otherwise(known: Lookup, behavior: BehaviorResult, verdict: VerdictResult) -> list[Fact]:
    """Where the model would stand without those named; where one's data or weights were replaced, both ways."""
    facts = []
    for party in verdict.parties:
        replaced = _end(known, behavior, f"replace {party}")
        if not replaced:
            continue
        clean_ = (
            "with reference weights, the model ends at "
            if party == INITIAL
            else "on reference data, the model ends at ",
            *replaced,
        )
        left_out = _end(known, behavior, f"omit {party}")
        both = (*clean_, "; left out, at ", *left_out) if left_out else clean_
        facts.append(Fact(f"{_heading(party)} replaced", both))
    stages = sorted(party for party in verdict.parties if is_stage(party))
    if facts or not stages or verdict.ending not in ("removed", "partly-removed"):
        return facts
    ends = _end(known, behavior, *(f"omit {stage}" for stage in stages))
    alone = known.effect(behavior.id, f"omit {stages[0]}") if len(stages) == 1 else None
    if not ends and alone is not None:
        effect, place = alone
        ends = level(effect.counterfactual, f"{place}/counterfactual", unit_of(behavior.unit))
    label = "Without it" if len(stages) == 1 else "Without them"
    return [Fact(label, ("the model would end at ", *ends))] if ends else []


def _end(known: Lookup, behavior: BehaviorResult, *arm: str) -> Phrase:
    """The level at the end of an arm; empty where it was not made."""
    end = known.path(behavior.id, *arm)
    if end is None or not end[0].levels:
        return ()
    path, ref = end
    last = len(path.levels) - 1
    return level(path.levels[last], f"{ref}/levels/{last}", unit_of(behavior.unit))


def _heading(party: str) -> str:
    return capital(clean(in_words(party), SHORT))


def stands(behavior: BehaviorResult, ref: str, verdict: VerdictResult | None) -> Phrase:
    """Where the deployed model stands, on how many examples, and against what it is held."""
    unit, concern = unit_of(behavior.unit), behavior.concern
    if behavior.value is None:
        return ("not measured",)
    stands = level(behavior.value, f"{ref}/value", unit)
    if behavior.examples is not None:
        stands = (*stands, " on ", *count(behavior.examples, f"{ref}/examples", "examples"))
    if concern.limit is None:
        itself = verdict is not None and verdict.limit == "self"
        against = "; held against the best state of the run itself" if itself else ""
        return (*stands, f"; no limit is stated{against}")
    beyond = "above" if concern.rises else "below"
    stated = limit(concern.limit, f"{ref}/concern/limit", unit)
    return (*stands, f", {beyond if behavior.beyond else 'within'} the limit of ", *stated)


def _certainty(known: Lookup, verdict: VerdictResult, ref: str) -> list[Fact]:
    """Of how many resamples the confidence is the share, or that it is a convention."""
    if verdict.confidence is None:
        return []
    stated, named = confidence(verdict.confidence, f"{ref}/confidence"), set(verdict.parties)
    total = max(1, sum(item.count for item in verdict.tallies))
    exactly = sum(t.count for t in verdict.tallies if set(t.parties) == named) / total
    include = sum(t.count for t in verdict.tallies if named <= set(t.parties)) / total
    among = sum(t.count for t in verdict.tallies if named & set(t.parties)) / total
    share = among if verdict.verdict == "one-or-more" else include
    if share > verdict.confidence + EXACT and verdict.confidence >= known.cap - EXACT:
        words = ", by convention the most that evidence of this grade carries"
    elif verdict.verdict == "one-or-more":
        words = " of resamples name one or more of these"
    elif abs(exactly - verdict.confidence) < EXACT or exactly == include:
        words = " of resamples name exactly this"
    else:
        words = " of resamples name this, alone or with others"
    return [Fact("Confidence", (*stated, words))]


def _beside(
    known: Lookup, behavior: BehaviorResult, verdict: VerdictResult, ref: str
) -> list[Fact]:
    """What a reader must know besides: masks and repairs, what is not cleared, which gates did not pass."""
    facts = []
    repaired = parties_with(verdict, "repaired")
    masks = [party for party in verdict.masked_by if party not in repaired]
    if repaired:
        facts.append(
            Fact("Repaired by", (f"{known.owned(repaired)}: beyond the limit without it",))
        )
    if masks:
        facts.append(Fact("Worked against it", (f"{known.owned(masks)}: worse without it",)))
    if verdict.reservations:
        reservations = known.words.clauses(verdict.reservations, f"{ref}/reservations")
        facts.append(Fact("Not cleared", reservations))
    elif verdict.limit == "self":
        facts.append(Fact("Not cleared", (SELF,)))
    if verdict.verdict in NAMING and verdict.settle:
        more = known.words.clauses(verdict.settle, f"{ref}/settle")
        facts.append(Fact("What would tell more", more))
    if verdict.verdict == "absent" and (gates := known.open_gates(behavior.id)):
        named = ", ".join(f"{clean(g.id, SHORT)} ({g.outcome})" for g in gates[:6])
        facts.append(Fact("Gates not passed", (named,)))
    return facts
