"""Limitations: what the audit did not establish."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.parts import MAX_ROWS, SHORT, Fact, clean
from auditspec.report.sections.interface import Section
from auditspec.results import AuditResult


@dataclass(frozen=True)
class LimitationsView:
    """What was not established."""

    limitations: tuple[Fact, ...]
    more: int
    """Limitations that are only in results.json."""


class Limitations(Section):
    """Limitations."""

    id = "limitations"
    title = "Limitations"
    shows = ("limitations",)
    filled_by = "limitations"

    def view(self, known: Lookup) -> LimitationsView:
        """Every limitation; where there is none, the section says so."""
        more = max(0, len(known.result.limitations) - MAX_ROWS)
        return LimitationsView(limitations(known.result), more)


def limitations(result: AuditResult) -> tuple[Fact, ...]:
    """What was missing, and what follows from that."""
    return tuple(
        Fact(clean(item.id, SHORT), (clean(item.text),)) for item in result.limitations[:MAX_ROWS]
    )
