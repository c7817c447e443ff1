"""The cover: which report this is, and its outcome in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.numbers import date, date_and_time, timestamp
from auditspec.report.parts import (
    GATE,
    HIDDEN,
    SHORT,
    WITHHELD,
    Code,
    Fact,
    Part,
    Phrase,
    Status,
    clean,
)
from auditspec.report.sections.opinion import tally
from auditspec.results import AuditResult
from auditspec.withheld import unless_withheld


@dataclass(frozen=True)
class Cover:
    """What stands before the first section, in the page's head, and at its foot."""

    id: str
    title: str
    tool: str
    created: str
    created_iso: str
    classification: str
    author: str
    keywords: str
    signed: bool
    control: tuple[Fact, ...]
    gate: Status
    summary: tuple[tuple[Status, int], ...]
    """How many behaviours have each verdict."""


def cover(known: Lookup) -> Cover:
    """The facts that name the report, and its outcome."""
    result = known.result
    run, audit, auditor = result.run, result.audit, result.auditor
    return Cover(
        id=clean(audit.id, 64),
        title=clean(audit.title, 160),
        tool=clean(run.tool, 60),
        created=date_and_time(run.created),
        created_iso=timestamp(run.created),
        classification=clean(audit.classification, 60),
        author=f"{clean(auditor.name, SHORT)}, {clean(auditor.organization, SHORT)}",
        keywords=f"audit, accountability, training stages, {clean(audit.id, 64)}",
        signed=result.signer is not None,
        control=document_control(result),
        gate=unless_withheld(lambda: GATE[result.gate.passed], WITHHELD),
        summary=tally(known),
    )


def document_control(result: AuditResult) -> tuple[Fact, ...]:
    """The cover's facts; one that is withheld says so, and the last says how many values are."""
    facts: tuple[tuple[str, Callable[[AuditResult], Part]], ...] = (
        ("Report", lambda r: Code(r.audit.id)),
        ("System", lambda r: _pair(r.system.name, r.system.version)),
        ("Classification", lambda r: clean(r.audit.classification, 60)),
        ("Date", lambda r: date_and_time(r.run.created)),
        ("Author", lambda r: _pair(r.auditor.name, r.auditor.organization)),
        (
            "Approver",
            lambda r: _pair(r.approver.name, r.approver.role) if r.approver else "not named",
        ),
        ("Expires", lambda r: date(r.audit.expires) if r.audit.expires else "no date set"),
        (
            "Supersedes",
            lambda r: (
                clean(r.audit.supersedes, SHORT) if r.audit.supersedes else "no earlier report"
            ),
        ),
    )
    shown = tuple(Fact(label, _or_withheld(value, result)) for label, value in facts)
    if not result.withheld:
        return shown
    withheld = f"{len(result.withheld)} of the signed values; each place says so"
    return (*shown, Fact("Withheld", (withheld,)))


def _or_withheld(show: Callable[[AuditResult], Part], result: AuditResult) -> Phrase:
    return unless_withheld(lambda: (show(result),), (HIDDEN,))


def _pair(first: str, second: str) -> str:
    return f"{clean(first, SHORT)}, {clean(second, SHORT)}"
