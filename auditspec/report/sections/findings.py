"""Findings: every behaviour in full, and what its verdict rests on."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.charts import contribution_chart, effect_chart, path_chart
from auditspec.report.charts.kit import MAX_DOTS, MAX_STAGES
from auditspec.report.lookup import Lookup, short
from auditspec.report.numbers import (
    Unit,
    count,
    date,
    level,
    limit,
    percent,
    tolerance,
    unit_of,
)
from auditspec.report.parts import (
    MAX_TOLD,
    SHORT,
    Code,
    Fact,
    Muted,
    Part,
    Phrase,
    Table,
    clean,
)
from auditspec.report.sections.interface import Section
from auditspec.report.sections.opinion import NAMING, VerdictView, stands, verdict_view
from auditspec.report.sections.roles import roles_table
from auditspec.report.sections.terms import terms_table
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Concern,
    Ending,
    Suppression,
    Tally,
    VerdictResult,
)

ENDINGS: dict[Ending, str] = {
    "evidence": "the evidence does not carry an estimate",
    "estimate": "the estimate of this behaviour is not to be relied on",
    "examples": "there are too few evaluation examples",
    "within": "the deployed model is not beyond the level that it is held against",
    "removed": "the excess goes where certain stages are left out or trained on clean data",
    "partly-removed": "a material part of the excess goes where certain stages are left out or trained on clean "
    "data",
    "persists": "the excess came with a party that cannot be left out, and was still there at the end of every "
    "later stage",
    "unexplained": "the deployed model is beyond the limit, and no party was found",
}
"""What a verdict's rule saw on the evaluation examples as they are."""
MAX_TALLIES = 5
MAX_GROUPS = 30


@dataclass(frozen=True)
class Pictures:
    """The charts of one behaviour; an empty text where there is none."""

    path: tuple[str, str]
    """Of its level along the recorded run, with its caption."""
    effects: str
    why: str
    """Why there is no chart of effects."""
    when: str
    """Of the steps that made it, as far as first-order terms can tell."""
    terms: Table
    """What the terms add up to, beside the effects."""


@dataclass(frozen=True)
class FindingsView:
    """Every behaviour in full."""

    findings: tuple[tuple[FindingView, Pictures], ...]
    more: int
    """Behaviours that are only in results.json."""


class Findings(Section):
    """Findings."""

    id = "findings"
    title = "Findings"
    shows = ("behaviors", "findings", "contributions")

    def view(self, known: Lookup) -> FindingsView:
        """Every behaviour with its pictures, also those without a finding."""
        result = known.result
        shown = result.behaviors[:MAX_TOLD]
        drawn = MAX_DOTS // (2 * max(1, min(MAX_STAGES, len(result.stages))))
        return FindingsView(
            tuple(
                (finding_view(known, behavior, i), _pictures(result, i, drawn))
                for i, behavior in enumerate(shown)
            ),
            len(result.behaviors) - len(shown),
        )


def _pictures(result: AuditResult, index: int, drawn: int) -> Pictures:
    """The charts of a behaviour, or why there is none; only the first `drawn` are drawn."""
    behavior = result.behaviors[index]
    terms = terms_table(result, behavior)
    if index >= drawn:
        only = f"Only the first {drawn} behaviours are drawn; results.json holds every number."
        return Pictures(("", ""), "", only, "", terms)
    path = path_chart(result, behavior, f"path-{index + 1}")
    if not any(effect.behavior == behavior.id for effect in result.effects):
        return Pictures(path, "", "No effect on this behaviour was estimated.", "", terms)
    when = contribution_chart(result, behavior, f"when-{index + 1}")
    return Pictures(path, effect_chart(result, behavior, f"effect-{index + 1}"), "", when, terms)


@dataclass(frozen=True)
class FindingView:
    """What was found about one behaviour, in full."""

    verdict: VerdictView
    statement: Phrase
    facts: tuple[Fact, ...]
    roles: Table
    names: bool
    """Whether somebody is named."""
    finding: str
    """Id of the finding; empty where there is none."""
    alternatives: tuple[Phrase, ...]
    suppressed: Phrase


def finding_view(known: Lookup, behavior: BehaviorResult, index: int) -> FindingView:
    """One behaviour with its measured value, its verdict's reasons, and its finding if any."""
    verdict, ref = known.verdicts.entry(behavior.id)
    finding, place = known.findings.entry(behavior.id)
    view = verdict_view(known, behavior, index)
    statement: Phrase = ("No verdict.",)
    alternatives: list[Phrase] = []
    if verdict is not None:
        statement = known.words.sentence(verdict.statement, f"{ref}/statement")
    if finding is not None:
        statement = known.words.sentence(finding.statement, f"{place}/statement")
        alternatives = known.words.each(finding.alternatives[:20], f"{place}/alternatives")
    return FindingView(
        verdict=view,
        statement=statement,
        facts=(
            *_measured(known, behavior, f"/behaviors/{index}", verdict),
            *(fact for fact in view.facts if fact.label != "Deployed model"),
            *(_decided(verdict, ref) if verdict else ()),
            *_reasons(known, verdict, ref),
            *_rests_on(verdict),
        ),
        roles=roles_table(known, behavior),
        names=verdict is not None and verdict.verdict in NAMING,
        finding=clean(finding.id, SHORT) if finding else "",
        alternatives=tuple(alternatives),
        suppressed=_suppressed(finding.suppressed if finding else None),
    )


def _measured(
    known: Lookup, behavior: BehaviorResult, ref: str, verdict: VerdictResult | None
) -> tuple[Fact, ...]:
    where = (", where ", Code(clean(behavior.where, 300))) if behavior.where else ()
    skill: tuple[Fact, ...] = ()
    if behavior.skill is not None:
        skill = (Fact("Skill is read on", known.words.sentence(behavior.skill, f"{ref}/skill")),)
    measured = (clean(behavior.metric, 400), ", ", clean(behavior.statistic, 400))
    return (
        Fact("Metric", (*measured, " (", Code(clean(behavior.id, SHORT)), ")")),
        Fact("Data", (Code(clean(behavior.data, SHORT)), *where)),
        Fact("Deployed model", stands(behavior, ref, verdict)),
        *_groups(behavior, ref),
        Fact("Concern", _concern(behavior.concern, f"{ref}/concern", unit_of(behavior.unit))),
        *skill,
    )


def _groups(behavior: BehaviorResult, ref: str) -> tuple[Fact, ...]:
    """The groups that are compared, each with its level and its examples."""
    told: list[Part] = []
    for index, group in enumerate(behavior.groups[:MAX_GROUPS]):
        place = f"{ref}/groups/{index}"
        value: Phrase = ("left out",)
        if group.level is not None:
            value = level(group.level, f"{place}/level", unit_of(group.unit))
        on = count(group.examples, f"{place}/examples", "examples")
        told += ["; " if told else "", f"{clean(group.name, SHORT)}: ", *value, " (", *on, ")"]
    more = len(behavior.groups) - MAX_GROUPS
    told += [f"; and {more} more in results.json"] if more > 0 else []
    return (Fact("Groups", tuple(told)),) if told else ()


def _concern(concern: Concern, ref: str, unit: Unit) -> Phrase:
    rises = concern.rises
    small: Phrase = (
        *tolerance(concern.tolerance, f"{ref}/tolerance", unit),
        " does not matter yet",
    )
    if concern.tolerance_share is not None:
        share = percent(concern.tolerance_share, f"{ref}/tolerance_share")
        small = (*small, " (", *share, " of the limit)")
    if concern.limit is None:
        return (
            f"harm if it {'rises' if rises else 'falls'}; a change of ",
            *small,
            "; no limit is stated",
        )
    word = "rise above" if rises else "fall below"
    stated = limit(concern.limit, f"{ref}/limit", unit)
    return (f"must not {word} ", *stated, "; a change of ", *small)


def _decided(verdict: VerdictResult, ref: str) -> list[Fact]:
    """By which rule, and how often over resamples."""
    facts = [Fact("Rule", (Code(verdict.ending), Muted(f": {ENDINGS[verdict.ending]}")))]
    if verdict.tallies:
        words: list[Part] = []
        for index, item in enumerate(verdict.tallies[:MAX_TALLIES]):
            words += ["; " if words else "", *_resampled(item, f"{ref}/tallies/{index}")]
        rest = len(verdict.tallies) - MAX_TALLIES
        facts.append(
            Fact("Over resamples", (*words, *(("; and more rarely others",) if rest > 0 else ())))
        )
    return facts


def _resampled(item: Tally, ref: str) -> Phrase:
    named = ", ".join(short(party) for party in item.parties[:10]) or "nobody"
    return (f"{named} in ", *count(item.count, f"{ref}/count"), f" ({item.ending})")


def _reasons(known: Lookup, verdict: VerdictResult | None, ref: str) -> tuple[Fact, ...]:
    if verdict is None or not verdict.reasons or verdict.verdict == "inconclusive":
        return ()
    return (Fact("Because", known.words.clauses(verdict.reasons, f"{ref}/reasons")),)


def _rests_on(verdict: VerdictResult | None) -> tuple[Fact, ...]:
    if verdict is None:
        return ()
    codes: list[str | Code | Muted] = []
    for name in verdict.rests_on[:20]:
        codes += [", ", Code(clean(name, SHORT))]
    return (Fact("Rests on", tuple(codes[1:]) or ("–",)),)


def _suppressed(suppression: Suppression | None) -> Phrase:
    if suppression is None:
        return ()
    return (
        f"Accepted by {clean(suppression.owner, SHORT)} until {date(suppression.expires)}: "
        f"{clean(suppression.reason)} The policy gate does not count this finding.",
    )
