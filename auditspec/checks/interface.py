"""The interface of a confidence check: built with what it looks at, run once, gives a result.

A check that cannot run says so with `skipped(reason)`; that is a result too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, final

from auditspec.results import CheckDetail, CheckResult, Outcome

FEWEST = 10
"""Examples below which resamples of them are not to be relied on."""


class Check(ABC):
    """One confidence check."""

    id: ClassVar[str]
    title: ClassVar[str]
    role: ClassVar[Literal["gate", "descriptive"]] = "gate"
    statistic_name: ClassVar[str]
    unit: ClassVar[str] = ""
    source: ClassVar[str]
    """Where the statistic comes from: a publication, or the document that defines it."""

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
    def skipped(cls, reason: str) -> CheckResult:
        """The result of a check that was not run."""
        return CheckResult(
            id=cls.id,
            title=cls.title,
            role=cls.role,
            outcome="not-run",
            statistic_name=cls.statistic_name,
            unit=cls.unit,
            source=cls.source,
            reason=reason,
        )
