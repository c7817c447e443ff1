"""The cover: which report this is, and its outcome in a line."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.numbers import date, date_and_time, timestamp
from auditspec.report.parts import (
    GATE,
    SHORT,
    Code,
    Fact,
    Status,
    clean,
)
from auditspec.report.sections.opinion import tally
from auditspec.results import (
    AuditResult,
)


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
        gate=GATE[result.gate.passed],
        summary=tally(known),
    )


def document_control(result: AuditResult) -> tuple[Fact, ...]:
    """The cover's facts."""
    audit, run = result.audit, result.run
    approver = result.approver
    return (
        Fact("Report", (Code(audit.id),)),
        Fact(
            "System",
            (f"{clean(result.system.name, SHORT)}, {clean(result.system.version, SHORT)}",),
        ),
        Fact("Classification", (clean(audit.classification, 60),)),
        Fact("Date", (date_and_time(run.created),)),
        Fact(
            "Author",
            (f"{clean(result.auditor.name, SHORT)}, {clean(result.auditor.organization, SHORT)}",),
        ),
        Fact(
            "Approver",
            (f"{clean(approver.name, SHORT)}, {clean(approver.role, SHORT)}",)
            if approver
            else ("not named",),
        ),
        Fact("Expires", (date(audit.expires) if audit.expires else "no date set",)),
        Fact(
            "Supersedes",
            (clean(audit.supersedes, SHORT) if audit.supersedes else "no earlier report",),
        ),
    )
