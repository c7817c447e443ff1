"""The results side of the view: verdicts, findings, effects, and what they rest on.

The word "answerable" is used for the verdict `attributed` and for no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from auditspec.report.concern import towards
from auditspec.report.numbers import (
    confidence,
    count,
    date,
    effect_in_words,
    interval,
    level,
    percent,
    signed,
    tolerance,
    unit_of,
)
from auditspec.report.parts import (
    MAX_EFFECTS,
    SEVERITY,
    SHORT,
    VERDICTS,
    Code,
    Column,
    Fact,
    Muted,
    Number,
    Phrase,
    Status,
    Table,
    clean,
    table,
)
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Concern,
    Effect,
    Finding,
    Suppression,
    Verdict,
    VerdictResult,
)

NO_EFFECT = "Leaving out any one stage would not undo more than the tolerance"

MEANINGS: dict[Verdict, str] = {
    "attributed": "One stage moved the behaviour towards the concern by more than the tolerance, "
    "leads in nearly all resamples, and was confirmed by exact replay.",
    "shared": "Two or more stages each moved the behaviour towards the concern by more than the "
    "tolerance; they are listed with the largest first.",
    "no-effect": f"{NO_EFFECT}.",
    "inconclusive": "The evidence cannot decide; the report says what would settle it.",
}
MARKS: dict[Verdict, str] = {"attributed": "● answerable", "shared": "◐ shared"}
"""How the tables mark the stages that a verdict names."""


@dataclass(frozen=True)
class VerdictView:
    """One behaviour's verdict, as the opinion shows it."""

    anchor: str
    behavior: str
    title: str
    status: Status
    severity: Status
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class FindingView:
    """What was found about one behaviour, in full."""

    verdict: VerdictView
    statement: str
    facts: tuple[Fact, ...]
    finding: str
    """Id of the finding; empty where there is none."""
    alternatives: tuple[str, ...]
    suppressed: Phrase


class Lookup:
    """Finds the parts of a result by their ids, with their JSON pointers."""

    def __init__(self, result: AuditResult) -> None:
        self.result = result
        self.behaviors = {b.id: (b, f"/behaviors/{i}") for i, b in enumerate(result.behaviors)}
        self.verdicts = {v.behavior: (v, f"/verdicts/{i}") for i, v in enumerate(result.verdicts)}
        self.findings = {f.behavior: f for f in result.findings}
        self.stages = {s.id: s for s in result.stages}
        self._effects = {
            (e.behavior, e.stage): (e, f"/effects/{i}") for i, e in enumerate(result.effects)
        }

    def effect(self, behavior: str, stage: str) -> tuple[Effect, str] | None:
        """One stage's effect on one behaviour, and the pointer to it."""
        return self._effects.get((behavior, stage))

    def effects(self, behavior: str) -> list[tuple[Effect, str]]:
        """The effects of all stages on one behaviour."""
        return [found for (name, _), found in self._effects.items() if name == behavior]


def finding_views(result: AuditResult) -> tuple[FindingView, ...]:
    """Every behaviour with its measured value, its verdict's reasons, and its finding if any."""
    known = Lookup(result)
    return tuple(_finding(known, behavior, i) for i, behavior in enumerate(result.behaviors))


def tally(result: AuditResult) -> tuple[tuple[Status, int], ...]:
    """How many behaviours have each verdict, without the verdicts that none has."""
    found = {verdict.behavior: verdict.verdict for verdict in result.verdicts}
    counts = Counter(found.get(behavior.id, "inconclusive") for behavior in result.behaviors)
    return tuple((status, counts[kind]) for kind, status in VERDICTS.items() if counts[kind])


def effects_tables(result: AuditResult) -> tuple[Table, ...]:
    """Every effect, with everything that is known about it: one table per behaviour."""
    known = Lookup(result)
    indices: dict[str, list[int]] = {}
    for index, effect in enumerate(result.effects[:MAX_EFFECTS]):
        indices.setdefault(effect.behavior, []).append(index)
    return tuple(_effects(known, name, rows) for name, rows in indices.items())


def _effects(known: Lookup, name: str, indices: Sequence[int]) -> Table:
    behavior, _ = known.behaviors.get(name, (None, ""))
    verdict, _ = known.verdicts.get(name, (None, ""))
    unit = unit_of(behavior.unit if behavior else "")
    change = replace(unit, level="")
    named = verdict.stages if verdict else ()
    mark = MARKS.get(verdict.verdict, "") if verdict else ""

    def row(_: int, index: int) -> tuple[Phrase, ...]:
        effect, ref = known.result.effects[index], f"/effects/{index}"
        remark = (Muted(mark),) if mark and effect.stage in named else ()
        return (
            (clean(effect.stage, SHORT), *remark),
            signed(effect, ref, unit),
            interval(effect, ref, unit),
            level(effect.counterfactual, f"{ref}/counterfactual", unit),
            ("exact",) if effect.exact else level(effect.error, f"{ref}/error", change, 2),
            level(effect.linear, f"{ref}/linear", change, 3),
            percent(effect.leads, f"{ref}/leads"),
        )

    columns = (
        Column("Stage"),
        Column("Effect", numeric=True),
        Column("Interval", numeric=True),
        Column("Without it", numeric=True),
        Column("Estimator’s error", numeric=True),
        Column("Linear reading", numeric=True),
        Column("Leads", numeric=True),
    )
    return table(f"{clean(name, SHORT)}, in {unit.change}", columns, indices, row)


def _verdict(known: Lookup, behavior: BehaviorResult, index: int) -> VerdictView:
    verdict, ref = known.verdicts.get(behavior.id, (None, ""))
    kind = "inconclusive" if verdict is None else verdict.verdict
    facts: list[Fact]
    if verdict is None:
        facts = [Fact("Why", ("no verdict was recorded",))]
    elif kind == "attributed":
        facts = _attributed(known, behavior, verdict, ref)
    elif kind == "shared":
        facts = [
            Fact("Shared between", (_names(known, verdict.stages),)),
            *(Fact(clean(s, SHORT), _moved(known, behavior, s)) for s in verdict.stages),
        ]
        if verdict is not None and verdict.settle:
            facts.append(Fact("What would tell them apart", (_sentence(verdict.settle),)))
    elif kind == "no-effect":
        facts = _harmless(known, behavior, index)
    else:
        facts = [
            Fact("Why", (_sentence(verdict.reasons) or clean(verdict.statement),)),
            Fact("What would settle it", (_sentence(verdict.settle) or "not stated",)),
        ]
    if verdict is not None and verdict.improved_by:
        facts.append(Fact("Moved the other way", (_names(known, verdict.improved_by),)))
    return VerdictView(
        anchor=f"behaviour-{index + 1}",
        behavior=clean(behavior.id, SHORT),
        title=clean(behavior.description, 240),
        status=VERDICTS[kind],
        severity=SEVERITY[behavior.concern.severity],
        facts=tuple(facts),
    )


def _attributed(
    known: Lookup, behavior: BehaviorResult, verdict: VerdictResult, ref: str
) -> list[Fact]:
    stage = verdict.stages[0] if verdict.stages else "–"
    return [
        Fact("Answerable stage", (_names(known, (stage,)),)),
        Fact("How much", _moved(known, behavior, stage)),
        Fact("Confidence", _confidence(known, behavior, stage, verdict, ref)),
    ]


def _confidence(
    known: Lookup, behavior: BehaviorResult, stage: str, verdict: VerdictResult, ref: str
) -> Phrase:
    """How often the stage leads; where the evidence carries less than that, the cap first."""
    stated = confidence(verdict.confidence, f"{ref}/confidence")
    found = known.effect(behavior.id, stage)
    leads = found[0].leads if found else None
    if found is None or leads is None or verdict.confidence is None or leads <= verdict.confidence:
        return ("leads in ", *stated, " of resamples")
    often = confidence(leads, f"{found[1]}/leads")
    return (*stated, ", capped by the grade of the evidence; leads in ", *often, " of resamples")


def _harmless(known: Lookup, behavior: BehaviorResult, index: int) -> list[Fact]:
    unit = unit_of(behavior.unit)
    allowed = tolerance(behavior.concern.tolerance, f"/behaviors/{index}/concern/tolerance", unit)
    facts = [Fact("Meaning", (f"{NO_EFFECT} (", *allowed, ")"))]
    moved = [(e, ref) for e, ref in known.effects(behavior.id) if towards(e, behavior) > 0]
    if moved:
        effect, ref = max(moved, key=lambda found: towards(found[0], behavior))
        words = effect_in_words(effect, ref, unit)
        facts.append(Fact("Largest move", (f"{clean(effect.stage, SHORT)}: ", *words)))
    return facts


def _finding(known: Lookup, behavior: BehaviorResult, index: int) -> FindingView:
    verdict, _ = known.verdicts.get(behavior.id, (None, ""))
    finding: Finding | None = known.findings.get(behavior.id)
    view = _verdict(known, behavior, index)
    statement = finding.statement if finding else verdict.statement if verdict else "No verdict."
    return FindingView(
        verdict=view,
        statement=clean(statement),
        facts=(
            *_measured(behavior, f"/behaviors/{index}"),
            Fact("Verdict", (view.status, *_rule(known, behavior.id))),
            *view.facts,
            *_reasons(verdict),
            *_rests_on(finding),
        ),
        finding=clean(finding.id, SHORT) if finding else "",
        alternatives=tuple(clean(a) for a in finding.alternatives[:20]) if finding else (),
        suppressed=_suppressed(finding.suppressed if finding else None),
    )


def _measured(behavior: BehaviorResult, ref: str) -> tuple[Fact, ...]:
    where = (", where ", Code(clean(behavior.where, 300))) if behavior.where else ()
    value: Phrase = ("not measured",)
    if behavior.value is not None:
        value = level(behavior.value, f"{ref}/value", unit_of(behavior.unit))
    if behavior.examples is not None:
        value = (*value, " on ", *count(behavior.examples, f"{ref}/examples", "examples"))
    return (
        Fact("Metric", (clean(behavior.metric, 400), " (", Code(clean(behavior.id, SHORT)), ")")),
        Fact("Data", (Code(clean(behavior.data, SHORT)), *where)),
        Fact("Deployed model", value),
        Fact("Concern", _concern(behavior.concern, f"{ref}/concern", behavior)),
    )


def _concern(concern: Concern, ref: str, behavior: BehaviorResult) -> Phrase:
    word = "rises" if concern.direction == "increase" else "falls"
    allowed = tolerance(concern.tolerance, f"{ref}/tolerance", unit_of(behavior.unit))
    return (f"harm if it {word} by more than ", *allowed)


def _rule(known: Lookup, behavior: str) -> Phrase:
    verdict, ref = known.verdicts.get(behavior, (None, ""))
    if verdict is None:
        return ()
    return (" by rule ", Number(str(verdict.rule), verdict.rule, f"{ref}/rule"))


def _reasons(verdict: VerdictResult | None) -> tuple[Fact, ...]:
    if verdict is None or not verdict.reasons or verdict.verdict == "inconclusive":
        return ()
    return (Fact("Because", (_sentence(verdict.reasons),)),)


def _rests_on(finding: Finding | None) -> tuple[Fact, ...]:
    if finding is None:
        return ()
    codes: list[str | Code | Muted] = []
    for name in finding.evidence[:20]:
        codes += [", ", Code(clean(name, SHORT))]
    return (Fact("Rests on", tuple(codes[1:]) or ("–",)),)


def _suppressed(suppression: Suppression | None) -> Phrase:
    if suppression is None:
        return ()
    return (
        f"Accepted by {clean(suppression.owner, SHORT)} until {date(suppression.expires)}: "
        f"{clean(suppression.reason)} The policy gate does not count this finding.",
    )


def _moved(known: Lookup, behavior: BehaviorResult, stage: str) -> Phrase:
    found = known.effect(behavior.id, stage)
    if found is None:
        return ("the effect is not in the results",)
    effect, ref = found
    exact = "; exact counterfactual" if effect.exact else "; estimated counterfactual"
    return (*effect_in_words(effect, ref, unit_of(behavior.unit)), Muted(exact))


def _names(known: Lookup, stages: tuple[str, ...]) -> str:
    """Stages with their owners: `relabel (Data operations)`."""
    words = []
    for name in stages[:20]:
        stage = known.stages.get(name)
        owner = f" ({clean(stage.owner, SHORT)})" if stage else ""
        words.append(f"{clean(name, SHORT)}{owner}")
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _sentence(clauses: tuple[str, ...]) -> str:
    return clean("; ".join(clauses))
