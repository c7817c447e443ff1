"""The report's sections, one file each: what stands in a section, and nothing of how it looks.

A section is a class in one file and a template; `SECTIONS` is the only list of them.
"""

from auditspec.plugins import available
from auditspec.report.sections.checks import ConfidenceChecks
from auditspec.report.sections.effects import EffectsAndLevels
from auditspec.report.sections.evidence import EvidenceInventory
from auditspec.report.sections.findings import Findings
from auditspec.report.sections.glossary import Glossary
from auditspec.report.sections.interface import Section
from auditspec.report.sections.limitations import Limitations
from auditspec.report.sections.method import MethodOfEstimation
from auditspec.report.sections.opinion import Opinion
from auditspec.report.sections.reading import Reading
from auditspec.report.sections.reproducibility import Reproducibility
from auditspec.report.sections.scope import Scope
from auditspec.report.sections.signoff import SignOff
from auditspec.report.sections.system import SystemAndStages

SECTIONS: tuple[type[Section], ...] = (
    Opinion,
    Scope,
    SystemAndStages,
    EvidenceInventory,
    MethodOfEstimation,
    ConfidenceChecks,
    Findings,
    Limitations,
    Reproducibility,
    SignOff,
    EffectsAndLevels,
    Reading,
    Glossary,
)
"""In the report's order."""


def sections() -> tuple[Section, ...]:
    """Every section in the report's order, those of plug-ins after the built-in ones, appendices last.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    classes = available("sections", SECTIONS, Section, key="id")  # type: ignore[type-abstract]
    return tuple(sorted((section() for section in classes.values()), key=lambda s: s.appendix))


__all__ = ["SECTIONS", "Section", "sections"]
