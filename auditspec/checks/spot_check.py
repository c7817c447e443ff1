"""spot-check: exact replay of the stages that matter most, beside their estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import SpotCheck as Options
from auditspec.spot_checks import Comparison


class SpotCheck(Check):
    """Counts comparisons in which the estimate is off by more than its interval and the tolerance."""

    id = "spot-check"
    title = "Estimates agree with exact replay of the leading stages"
    statistic_name = "comparisons that disagree"
    unit = "comparisons"
    source = "exact replay, the estimand itself (docs/method.md)"
    bars = "estimated"
    bars_when = "failed"
    remedy = message("settle-replay")
    picture = "replays"
    section = Options
    looks_at = (Estimated,)
    budgeted = True

    def __init__(
        self, comparisons: Sequence[Comparison], exact: Sequence[str], gradients: float
    ) -> None:
        self.comparisons = comparisons
        self.exact = exact
        """Stages whose counterfactual is a replay by itself."""
        self.gradients = gradients

    @classmethod
    def of(cls, subject: Subject) -> SpotCheck | CheckResult:
        """On the stages that were replayed after they had been estimated."""
        estimated = subject[Estimated]
        confirmed = estimated.confirmed
        if confirmed.failed:
            return cls.skipped(message("failed", error=confirmed.failed))
        if len(confirmed.already_exact) < len(estimated.effects) and not confirmed.comparisons:
            if confirmed.replayed:
                why = message("replays-went-to-unreliable", stages=confirmed.replayed)
            elif estimated.reader.rerun.trajectory.grade == "boundaries":
                why = message("no-steps-to-replay")
            elif subject.spec.checks.of(cls.id, Options).stages:
                why = message("no-replay-in-budget")
            else:
                why = message("no-spot-check")
            return cls.skipped(why, gradients=confirmed.gradients)
        return cls(confirmed.comparisons, confirmed.already_exact, confirmed.gradients)

    def run(self) -> CheckResult:
        """Pass where every comparison agrees; a stage that was replayed anyway needs none."""
        bad = [c for c in self.comparisons if not c.passed]
        details = [
            CheckDetail(
                subject=f"{c.stage} / {c.behavior}",
                stage=c.stage,
                behavior=c.behavior,
                estimate=c.estimate,
                reference=c.exact,
                outcome="pass" if c.passed else "fail",
                statistic=c.relative_error if math.isfinite(c.relative_error) else None,
                notes=(message("estimate-and-exact", estimate=c.estimate, exact=c.exact),),
            )
            for c in self.comparisons
        ]
        details += [
            CheckDetail(
                subject=stage,
                stage=stage,
                outcome="pass",
                statistic=0.0,
                notes=(message("is-a-replay"),),
            )
            for stage in self.exact
        ]
        outcome: Outcome = "fail" if bad else "pass"
        checked = sorted({c.stage for c in self.comparisons})
        if bad:
            reasons = [
                message(
                    "estimate-is-off",
                    stage=c.stage,
                    behavior=c.behavior,
                    estimate=c.estimate,
                    exact=c.exact,
                )
                for c in bad[:3]
            ]
        elif checked:
            reasons = [message("estimate-agrees", stages=checked)]
        else:
            reasons = [message("leading-are-replays")]
        return self.result(
            outcome,
            reasons,
            statistic=len(bad),
            threshold=0,
            gradients=self.gradients,
            details=details,
        )
