"""evaluation-noise: whether a model that is scored twice gets the same level."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Rescored, Subject
from auditspec.intervals import repeatability
from auditspec.messages import Message, message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Sampling


class EvaluationNoise(Check):
    """The null control: how far two scorings of one model lie apart, in tolerances."""

    id = "evaluation-noise"
    title = "A model that is scored twice gets the same level"
    statistic_name = "repeatability limit of the noisiest behaviour, in tolerances"
    unit = "tolerances"
    source = "repeatability limit: ISO 5725-6:1994, 4.1.4; Bland & Altman 1986"
    discloses = True
    looks_at = (Estimated,)

    def __init__(self, rescored: Sequence[Rescored], level: float) -> None:
        self.rescored = rescored
        self.level = level

    @classmethod
    def of(cls, subject: Subject) -> EvaluationNoise:
        """On the behaviours whose scores are made elsewhere, or have chance in them."""
        return cls(subject[Estimated].rescored, subject.spec.checks.of("sampling", Sampling).level)

    def run(self) -> CheckResult:
        """Fails where noise alone can move a level by more than its tolerance; nothing to compare passes."""
        if not self.rescored:
            return self.result("pass", message("no-chance-in-scores"), threshold=1)
        details = [self._detail(scored) for scored in self.rescored]
        known = [d.statistic for d in details if d.statistic is not None]
        outcome: Outcome = "not-run" if not known else "pass"
        if any(d.outcome == "fail" for d in details):
            outcome = "fail"
        return self.result(
            outcome,
            [d.line for d in details],
            statistic=max(known, default=None),
            threshold=1,
            details=details,
        )

    def _detail(self, scored: Rescored) -> CheckDetail:
        notes: tuple[Message, ...]
        outcome: Outcome
        share = None
        if scored.unmeasured is not None:
            outcome, notes = "not-run", (scored.unmeasured,)
        elif scored.noise is None:
            outcome, notes = "not-run", (message("scored-once"),)
        else:
            share = repeatability(scored.noise, self.level) / scored.tolerance
            outcome = "fail" if share > 1 else "pass"
            notes = (message("noise-in-tolerances", share=share, level=self.level),)
        return CheckDetail(
            subject=scored.behavior,
            behavior=scored.behavior,
            outcome=outcome,
            statistic=share,
            notes=(*notes, *scored.missing),
        )
