"""What a section of the report is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from auditspec.report.lookup import Lookup


class Section(ABC):
    """A section of the report: which values it shows, and the template that prints them."""

    id: ClassVar[str]
    """Its anchor, and the name of its template in `templates/report/sections`."""
    title: ClassVar[str]
    appendix: ClassVar[bool] = False
    """Appendices come last, and have letters in place of numbers."""
    shows: ClassVar[tuple[str, ...]] = ()
    """Fields of `AuditResult` that stand in it: whatever is withheld of them is said in it."""
    template: ClassVar[str] = ""
    """Source of the Jinja template; empty: it lies in the templates' folder."""

    @abstractmethod
    def view(self, known: Lookup) -> object | None:
        """What the template prints, as `view`; None where there is nothing to say: it is left out."""
