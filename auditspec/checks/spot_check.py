"""spot-check: exact replay of the stages that matter most, beside their estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.results import CheckDetail, CheckResult, Outcome, message
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
            return cls.skipped(confirmed.failed)
        if len(confirmed.already_exact) < len(estimated.effects) and not confirmed.comparisons:
            if confirmed.replayed:
                why = (
                    f"every replay went to a stage whose estimate is unreliable "
                    f"({', '.join(confirmed.replayed)}), so that no other estimate was held against one: "
                    "raise checks.spot-check.stages"
                )
            elif estimated.reader.rerun.trajectory.grade == "boundaries":
                why = "the record holds no steps, so nothing can be replayed"
            elif subject.spec.checks.of(cls.id, Options).stages:
                why = "the budget does not pay for an exact replay (estimator.budget)"
            else:
                why = "the spec asks for no spot check (checks.spot-check.stages: 0)"
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
                note=f"estimate {c.estimate:+.4g}, exact {c.exact:+.4g}",
            )
            for c in self.comparisons
        ]
        details += [
            CheckDetail(
                subject=stage,
                stage=stage,
                outcome="pass",
                statistic=0.0,
                note="is an exact replay itself",
            )
            for stage in self.exact
        ]
        outcome: Outcome = "fail" if bad else "pass"
        checked = sorted({c.stage for c in self.comparisons})
        if bad:
            reason = "; ".join(
                f"{c.stage} on {c.behavior}: estimate {c.estimate:+.3g}, exact {c.exact:+.3g}"
                for c in bad[:3]
            )
        elif checked:
            reason = f"the estimate agrees with exact replay of {', '.join(checked)}"
        else:
            reason = "every leading stage's effect is an exact replay itself"
        return self.result(
            outcome,
            reason,
            statistic=len(bad),
            threshold=0,
            gradients=self.gradients,
            details=details,
        )
