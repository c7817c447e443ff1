"""The checks of an attribution that was made without a whole audit around it."""

from __future__ import annotations

from said import saying

from auditspec.attribute import Attribution
from auditspec.checks.examination import Examination
from auditspec.checks.subject import Subject
from auditspec.results import CheckResult
from auditspec.spec.models import Spec


def examined(attribution: Attribution, spec: Spec) -> dict[str, CheckResult]:
    """By id, those that look at estimates alone; the others are not run."""
    examination = Examination(Subject(spec))
    examination.add(attribution.estimated)
    return {result.id: result for result in examination.results(saying("no evidence was opened"))}
