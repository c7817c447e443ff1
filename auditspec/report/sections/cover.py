"""The cover's facts."""

from __future__ import annotations

from auditspec.report.numbers import date, date_and_time
from auditspec.report.parts import (
    SHORT,
    Code,
    Fact,
    clean,
)
from auditspec.results import (
    AuditResult,
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
