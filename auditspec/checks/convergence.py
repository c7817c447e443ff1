"""convergence: whether every run without a stage trains, so that its effect is defined."""

from __future__ import annotations

from collections.abc import Mapping

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult


class Convergence(Check):
    """Counts stages without which training diverges: they have no effect that could be told."""

    id = "convergence"
    title = "Training converges without each stage"
    statistic_name = "runs that diverge"
    unit = "runs"
    source = "the runs' own weights and outputs (docs/checks.md)"
    looks_at = (Estimated,)

    def __init__(self, diverged: Mapping[str, str]) -> None:
        self.diverged = diverged
        """Why a run cannot be read, by the stage that it leaves out."""

    @classmethod
    def of(cls, subject: Subject) -> Convergence:
        """On the runs without one stage each."""
        return cls(subject[Estimated].diverged)

    def run(self) -> CheckResult:
        """Fails where one diverges."""
        details = [
            CheckDetail(
                subject=stage, stage=stage, outcome="fail", notes=(message("failed", error=why),)
            )
            for stage, why in self.diverged.items()
        ]
        diverged = message("runs-diverge", stages=list(self.diverged))
        return self.result(
            "fail" if details else "pass",
            diverged if details else message("runs-converge"),
            statistic=len(details),
            threshold=0,
            details=details,
        )
