"""Confidence checks: every one, also those that were not run."""

from __future__ import annotations

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
)

ROLES = {
    "all": "Gate of every verdict",
    "estimated": "Gate of verdicts that rest on an estimated run",
    "behavior": "Gate of verdicts on the behaviours of its lines",
}
WINDOWS = (
    "How far each re-run window lands from the next recorded state. Windows at the bottom are bitwise equal; "
    "dashed: the threshold."
)
REPLAYED = (
    "Hollow: the estimate; filled: exact replay of the same stage. Each line is in shares of its behaviour's "
    "largest replayed effect."
)
PLACEBOS = (
    "Dots: the stages' effects; ticks: what random displacements of the same size give. Each line is in shares "
    "of its own largest number."
)


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
    filled_by = "checks"

    def view(self, known: Lookup) -> ChecksView:
        """How many checks had each outcome, and every check."""
        result = known.result
        more = max(0, len(result.checks) - MAX_ROWS)
        return ChecksView(tally(result), checks(result), more)


@dataclass(frozen=True)
class CheckView:
    """One confidence check."""

    anchor: str
    title: str
    id: str
    status: Status
    reason: str
    measure: Phrase
    details: Table | None
    picture: tuple[str, str] = ("", "")
    """A chart and its caption; empty where a picture says no more."""


def checks(result: AuditResult) -> tuple[CheckView, ...]:
    """Every confidence check, also those that were not run."""
    return tuple(_check(result, i, check) for i, check in enumerate(result.checks[:MAX_ROWS]))


def tally(result: AuditResult) -> tuple[tuple[Status, int], ...]:
    """How many checks had each outcome."""
    return tuple(
        (status, sum(check.outcome == outcome for check in result.checks))
        for outcome, status in OUTCOMES.items()
    )


def _check(result: AuditResult, index: int, check: CheckResult) -> CheckView:
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
        return (
            (clean(detail.subject, 200),),
            (OUTCOMES[detail.outcome],),
            plain(detail.statistic, f"{ref}/details/{line}/statistic"),
            (clean(detail.note, 300) or "–",),
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
        reason=clean(check.reason, 600),
        measure=(
            *measure,
            ".",
            *((f" Source: {clean(check.source, 200)}.",) if check.source else ()),
        ),
        details=details,
        picture=_picture(result, check, f"check-{index + 1}-picture"),
    )


def _role(check: CheckResult) -> str:
    """What a check is to the verdicts."""
    if check.bars == "nothing":
        return "Descriptive."
    return f"{ROLES[check.bars]}{', where it fails' if check.bars_when == 'failed' else ''}."


def _picture(result: AuditResult, check: CheckResult, key: str) -> tuple[str, str]:
    """The chart of a check that is better looked at than read, and its caption."""
    match check.picture:
        case "windows":
            chart, caption = window_chart(check, key), WINDOWS
        case "replays":
            chart, caption = replay_chart(result, check, key), REPLAYED
        case "draws":
            chart, caption = placebo_chart(result, check, key), PLACEBOS
        case _:
            chart, caption = "", ""
    return (chart, caption) if chart else ("", "")
