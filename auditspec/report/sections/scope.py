"""Scope and independence: who audits what, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup, anchor
from auditspec.report.numbers import count
from auditspec.report.parts import (
    MAX_TOLD,
    SHORT,
    Column,
    Fact,
    Phrase,
    Table,
    clean,
    table,
)
from auditspec.report.sections.interface import Section
from auditspec.results import (
    AuditResult,
    Exclusion,
)


@dataclass(frozen=True)
class ScopeView:
    """Who audits what."""

    facts: tuple[Fact, ...]
    behaviors: tuple[tuple[str, str, str], ...]
    """Anchor, title, and id of each."""
    more: int
    """Behaviours that are only in results.json."""
    exclusions: Table


class Scope(Section):
    """Scope and independence."""

    id = "scope"
    title = "Scope and independence"
    shows = ("auditor", "system", "exclusions")

    def view(self, known: Lookup) -> ScopeView:
        """Auditor and system, the behaviours in scope, and what was left out."""
        behaviors = enumerate(known.result.behaviors[:MAX_TOLD])
        return ScopeView(
            scope(known.result),
            tuple((anchor(i), clean(b.description, 240), clean(b.id, SHORT)) for i, b in behaviors),
            max(0, len(known.result.behaviors) - MAX_TOLD),
            exclusions(known.result),
        )


def scope(result: AuditResult) -> tuple[Fact, ...]:
    """The auditor and the audited system."""
    auditor, system = result.auditor, result.system
    return (
        Fact("System", (f"{clean(system.name, SHORT)}, version {clean(system.version, SHORT)}",)),
        Fact("Owner", (clean(system.owner, SHORT),)),
        Fact("Intended use", (clean(system.intended_use),)),
        Fact("Auditor", (f"{clean(auditor.name, SHORT)} ({clean(auditor.role, SHORT)})",)),
        Fact("Organisation", (clean(auditor.organization, SHORT),)),
        Fact("Independence", (clean(auditor.independence),)),
    )


def exclusions(result: AuditResult) -> Table:
    """What the audit deliberately left out."""

    def row(index: int, item: Exclusion) -> tuple[Phrase, ...]:
        return (
            (clean(item.what, 400),),
            (clean(item.reason, 400),),
            count(item.count, f"/exclusions/{index}/count"),
        )

    columns = (Column("Left out"), Column("Reason"), Column("Count", numeric=True))
    return table("Exclusions", columns, result.exclusions, row)
