"""The interface of a confidence check: it feeds itself from a subject, runs once, and gives a result.

A check that cannot run says so with `skipped(reason)`; that is a result too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, Self, final

from auditspec.checks.subject import Subject
from auditspec.results import Bars, CheckDetail, CheckResult, Outcome
from auditspec.spec.models import Spec


class Check(ABC):
    """One confidence check."""

    id: ClassVar[str]
    title: ClassVar[str]
    role: ClassVar[Literal["gate", "descriptive"]] = "gate"
    bars: ClassVar[Bars] = "nothing"
    statistic_name: ClassVar[str]
    unit: ClassVar[str] = ""
    source: ClassVar[str]
    """Where the statistic comes from: a publication, or the document that defines it."""
    looks_at: ClassVar[tuple[type, ...]]
    """Parts of the subject without which the check cannot run; it runs as soon as all are there."""
    halts: ClassVar[str] = ""
    """Why nothing further is looked at where the check does not pass; empty: the audit goes on."""
    budgeted: ClassVar[bool] = False
    """Whether the check's cost was paid from the budget of the estimates, and is counted there."""

    @classmethod
    @abstractmethod
    def of(cls, subject: Subject) -> Self | CheckResult:
        """The check on a subject, ready to run; or why it is not run, by `skipped`."""

    @classmethod
    def stops(cls, result: CheckResult, spec: Spec) -> str:
        """Why nothing further is looked at after a result; empty where the audit goes on."""
        return "" if result.outcome == "pass" else cls.halts

    @abstractmethod
    def run(self) -> CheckResult:
        """Measure, compare with the threshold, and say why."""

    @final
    def result(
        self,
        outcome: Outcome,
        reason: str,
        *,
        statistic: float | None = None,
        threshold: float | None = None,
        gradients: float = 0.0,
        coverage: float = 1.0,
        details: Iterable[CheckDetail] = (),
    ) -> CheckResult:
        """A result of this check."""
        return CheckResult(
            id=self.id,
            title=self.title,
            role=self.role,
            outcome=outcome,
            statistic_name=self.statistic_name,
            statistic=statistic,
            unit=self.unit,
            threshold=threshold,
            reason=reason,
            source=self.source,
            gradients=gradients,
            coverage=coverage,
            details=tuple(details),
        )

    @final
    @classmethod
    def skipped(cls, reason: str, *, gradients: float = 0.0) -> CheckResult:
        """The result of a check that was not run, or came to nothing."""
        return CheckResult(
            id=cls.id,
            title=cls.title,
            role=cls.role,
            outcome="not-run",
            statistic_name=cls.statistic_name,
            unit=cls.unit,
            source=cls.source,
            reason=reason,
            gradients=gradients,
        )
