"""convergence: whether every run without a stage trains, so that its effect is defined."""

from __future__ import annotations

from collections.abc import Mapping

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.effects import Unread
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult


class Convergence(Check):
    """Counts stages without which training diverges: they have no effect that could be told.

    Of a run that was only estimated, nobody knows whether it is training that does.
    """

    id = "convergence"
    title = "Training converges without each stage"
    statistic_name = "runs that diverge"
    unit = "runs"
    source = "the runs' own weights and outputs (docs/checks.md)"
    looks_at = (Estimated,)

    def __init__(self, diverged: Mapping[str, Unread]) -> None:
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
                subject=stage,
                stage=stage,
                outcome="fail" if run.exact else "inconclusive",
                notes=(message("failed", error=run.why),),
            )
            for stage, run in self.diverged.items()
        ]
        diverge = [stage for stage, run in self.diverged.items() if run.exact]
        unread = [stage for stage, run in self.diverged.items() if not run.exact]
        reasons = [message("runs-diverge", stages=diverge)] if diverge else []
        if unread:
            reasons.append(message("estimates-unread", stages=unread))
        return self.result(
            "fail" if diverge else "inconclusive" if unread else "pass",
            reasons or message("runs-converge"),
            statistic=len(diverge),
            threshold=0,
            details=details,
        )
