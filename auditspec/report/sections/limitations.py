"""Limitations: what the audit did not establish."""

from __future__ import annotations

from dataclasses import dataclass

from auditspec.report.lookup import Lookup
from auditspec.report.parts import MAX_ROWS, SHORT, Fact, clean
from auditspec.report.sections.interface import Section


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

    def view(self, known: Lookup) -> LimitationsView:
        """Every limitation; where there is none, the section says so."""
        more = max(0, len(known.result.limitations) - MAX_ROWS)
        return LimitationsView(limitations(known), more)


def limitations(known: Lookup) -> tuple[Fact, ...]:
    """What was missing, and what follows from that."""
    return tuple(
        Fact(clean(item.id, SHORT), known.words.sentence(item.message, f"/limitations/{i}/message"))
        for i, item in enumerate(known.result.limitations[:MAX_ROWS])
    )
