"""Glossary: the terms of the report."""

from __future__ import annotations

from auditspec.report.lookup import Lookup
from auditspec.report.sections.interface import Section


class Glossary(Section):
    """Glossary."""

    id = "glossary"
    title = "Glossary"
    appendix = True

    def view(self, known: Lookup) -> tuple[()]:
        """Nothing: the terms stand in the template."""
        return ()
