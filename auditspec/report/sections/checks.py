"""Confidence checks: every one, also those that were not run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auditspec.report.charts import placebo_chart, replay_chart, window_chart
from auditspec.report.lookup import Lookup
from auditspec.report.numbers import count, plain
from auditspec.report.parts import (
    MAX_ROWS,
    OUTCOMES,
    SHORT,
    Column,
    Phrase,
    Status,
    Table,
    capital,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import (
    AuditResult,
    CheckDetail,
    CheckResult,
    Picture,
)

ROLES = {
    "all": "Gate of every verdict",
    "estimated": "Gate of verdicts that rest on an estimated run",
    "behavior": "Gate of verdicts on the behaviours of its lines",
}
PICTURES: dict[Picture, tuple[Callable[[AuditResult, CheckResult, str], str], str]] = {
    "windows": (
        lambda _, check, key: window_chart(check, key),
        "How far each re-run window lands from the next recorded state. Windows at the bottom are bitwise "
        "equal; dashed: the threshold.",
    ),
    "replays": (
        replay_chart,
        "Hollow: the estimate; filled: exact replay of the same stage. Each line is in shares of its "
        "behaviour's largest replayed effect.",
    ),
    "draws": (
        placebo_chart,
        "Dots: the stages' effects; ticks: what random displacements of the same size give. Each line is in "
        "shares of its own largest number.",
    ),
}
"""How each kind of picture is drawn, and its caption."""


@dataclass(frozen=True)
class ChecksView:
    """Every check."""

    tally: tuple[tuple[Status, int], ...]
    checks: tuple[CheckView, ...]
    more: int
    """Checks that are only in results.json."""


class ConfidenceChecks(Section):
    """Confidence checks."""

    id = "checks"
    title = "Confidence checks"
    shows = ("checks",)

    def view(self, known: Lookup) -> ChecksView:
        """How many checks had each outcome, and every check."""
        result = known.result
        more = max(0, len(result.checks) - MAX_ROWS)
        return ChecksView(tally(result), checks(known), more)


@dataclass(frozen=True)
class CheckView:
    """One confidence check."""

    anchor: str
    title: str
    id: str
    status: Status
    reasons: Phrase
    measure: Phrase
    details: Table | None
    picture: tuple[str, Phrase] = ("", ())
    """A chart and its caption; empty where a picture says no more."""


def checks(known: Lookup) -> tuple[CheckView, ...]:
    """Every confidence check, also those that were not run."""
    shown = known.result.checks[:MAX_ROWS]
    return tuple(_check(known, check, index) for index, check in enumerate(shown))


def tally(result: AuditResult) -> tuple[tuple[Status, int], ...]:
    """How many checks had each outcome."""
    return tuple(
        (status, sum(check.outcome == outcome for check in result.checks))
        for outcome, status in OUTCOMES.items()
    )


def _check(known: Lookup, check: CheckResult, index: int) -> CheckView:
    ref = f"/checks/{index}"
    unit = clean(check.unit, 40)
    statistic = plain(check.statistic, f"{ref}/statistic", unit)
    measure: Phrase = (f"{_role(check)} {capital(clean(check.statistic_name, 200))}: ",)
    measure = (*measure, *(("not measured",) if check.statistic is None else statistic))
    if check.threshold is not None:
        limit = plain(check.threshold, f"{ref}/threshold", unit, typed=True)
        measure = (*measure, "; threshold ", *limit)
    if check.gradients:
        cost = count(check.gradients, f"{ref}/gradients", "minibatch gradients")
        measure = (*measure, "; cost ", *cost)

    def row(line: int, detail: CheckDetail) -> tuple[Phrase, ...]:
        note = known.words.clauses(detail.notes, f"{ref}/details/{line}/notes")
        read_on = _read_on(known, detail, f"{ref}/details/{line}")
        if read_on:
            read_on = ("; on " if note else "on ", *read_on)
        return (
            (clean(detail.subject, 200),),
            (OUTCOMES[detail.outcome],),
            plain(detail.statistic, f"{ref}/details/{line}/statistic"),
            (*note, *read_on) if note or read_on else ("–",),
        )

    columns = (
        Column("Subject"),
        Column("Outcome"),
        Column("Statistic", numeric=True),
        Column("Note"),
    )
    details = (
        table(f"Details of {clean(check.id, SHORT)}", columns, check.details, row)
        if check.details
        else None
    )
    return CheckView(
        anchor=f"check-{index + 1}",
        title=clean(check.title, 200),
        id=clean(check.id, SHORT),
        status=OUTCOMES[check.outcome],
        reasons=known.words.clauses(check.reasons, f"{ref}/reasons"),
        measure=(
            *measure,
            ".",
            *((f" Source: {clean(check.source, 200)}.",) if check.source else ()),
        ),
        details=details,
        picture=_picture(known, check, index),
    )


def _role(check: CheckResult) -> str:
    """What a check is to the verdicts."""
    if check.bars == "nothing":
        return "Descriptive."
    return f"{ROLES[check.bars]}{', where it fails' if check.bars_when == 'failed' else ''}."


def _picture(known: Lookup, check: CheckResult, index: int) -> tuple[str, Phrase]:
    """The chart of a check that is better looked at than read, and its caption."""
    if check.picture is None:
        return "", ()
    draw, caption = PICTURES[check.picture]
    chart = draw(known.result, check, f"check-{index + 1}-picture")
    return (chart, (caption, *_fewer(known, check, f"/checks/{index}"))) if chart else ("", ())


def _fewer(known: Lookup, check: CheckResult, ref: str) -> Phrase:
    """Which behaviours a picture shows as only some of the examples have them; empty where it is none."""
    words: Phrase = ()
    told = set[str | None]()
    for line, detail in enumerate(check.details):
        read_on = _read_on(known, detail, f"{ref}/details/{line}")
        if read_on and detail.behavior not in told:
            told.add(detail.behavior)
            words = (
                *words,
                "; " if words else "",
                f"{clean(detail.behavior or '', SHORT)} on ",
                *read_on,
            )
    if not words:
        return ()
    return (
        " Not read on every example, so that a number may differ from the effect's: ",
        *words,
        ".",
    )


def _read_on(known: Lookup, detail: CheckDetail, ref: str) -> Phrase:
    """On how many of its behaviour's examples a line was read; empty where on all of them."""
    behavior, place = known.behaviors.entry(detail.behavior or "")
    if detail.examples is None:
        return ()
    part = count(detail.examples, f"{ref}/examples")
    if behavior is None or behavior.examples is None:
        return (*part, " examples")
    return (*part, " of ", *count(behavior.examples, f"{place}/examples", "examples"))
