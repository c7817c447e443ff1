"""What a report withholds, section by section: never silently, always with its commitment."""

from __future__ import annotations

from auditspec.report.parts import SHORT, Code, Fact, Muted, clean
from auditspec.results import AuditResult

SECTIONS = {
    "verdicts": "opinion",
    "gate": "opinion",
    "auditor": "scope",
    "system": "scope",
    "exclusions": "scope",
    "stages": "system",
    "parties": "system",
    "evidence": "evidence",
    "estimates": "method",
    "checks": "checks",
    "behaviors": "findings",
    "findings": "findings",
    "limitations": "limitations",
    "approver": "signoff",
    "effects": "effects",
    "paths": "effects",
    "draws": "effects",
    "contributions": "findings",
}
"""The section that shows a part of the results; what is not listed is shown in `reproducibility`."""
WHOLE = {"evidence", "checks", "limitations", "effects"}
"""Parts that fill their section: where one is withheld as a whole, so is the section."""


def notices(result: AuditResult) -> dict[str, tuple[Fact, ...]]:
    """What is withheld in each section, with the reason and the commitment."""
    found: dict[str, tuple[Fact, ...]] = {}
    for item in result.withheld:
        section = SECTIONS.get(item.what.split("/")[1] if item.what.startswith("/") else "")
        said = (clean(item.reason, 300), Muted("commitment"), Code(clean(item.commitment, 160)))
        fact = Fact(f"Withheld: {clean(item.what, SHORT)}", said)
        section = section or "reproducibility"
        found[section] = (*found.get(section, ()), fact)
    return found


def hidden(result: AuditResult) -> frozenset[str]:
    """Sections of which nothing is left."""
    whole = {item.what.removeprefix("/") for item in result.withheld} & WHOLE
    return frozenset(SECTIONS[part] for part in whole)
