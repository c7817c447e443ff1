"""spot-check: exact replay of the stages that matter most, beside their estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from auditspec.checks.interface import Check
from auditspec.results import CheckDetail, CheckResult, Outcome


@dataclass(frozen=True)
class Comparison:
    """An estimated effect beside the exact one, in the metric's unit."""

    stage: str
    behavior: str
    estimate: float
    exact: float
    half_width: float
    """Of the estimate's stated interval: sampling, and the estimator's own error where it states one."""
    tolerance: float
    relative_error: float
    """RMS over examples of estimate - exact, relative to the RMS of exact."""
    error: float = 0.0
    """RMS over examples of estimate - exact."""
    own: float | None = None
    """The estimator's own estimate of that; None where it has none."""

    @property
    def passed(self) -> bool:
        """Estimate and exact agree within the interval or the tolerance, and in sign if it matters."""
        close = abs(self.estimate - self.exact) <= max(self.half_width, self.tolerance)
        small = max(abs(self.estimate), abs(self.exact)) <= self.tolerance
        return bool(close and (small or np.sign(self.estimate) == np.sign(self.exact)))


class SpotCheck(Check):
    """Counts comparisons in which the estimate is off by more than its interval and the tolerance."""

    id = "spot-check"
    title = "Estimates agree with exact replay of the leading stages"
    statistic_name = "comparisons that disagree"
    unit = "comparisons"
    source = "exact replay, the estimand itself (docs/method.md)"

    def __init__(
        self, comparisons: Sequence[Comparison], exact: Sequence[str], gradients: float
    ) -> None:
        self.comparisons = comparisons
        self.exact = exact
        """Stages whose counterfactual is a replay by itself."""
        self.gradients = gradients

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


def worst_relative_error(comparisons: Sequence[Comparison]) -> Mapping[str, float]:
    """The largest relative error of the checked stages, by behaviour."""
    worst: dict[str, float] = {}
    for c in comparisons:
        worst[c.behavior] = max(worst.get(c.behavior, 0.0), c.relative_error)
    return worst


def widened(own: float, behavior: str, comparisons: Sequence[Comparison]) -> float:
    """An estimator's own error on a stage that was not replayed, in the light of those that were.

    It grows by the factor by which the spot check saw the error on this behaviour exceed what the
    estimator said; by the whole error seen where it had said 0.
    """
    grown = [
        own * c.error / c.own if c.own else own + c.error
        for c in comparisons
        if c.behavior == behavior and c.own is not None
    ]
    return max([own, *grown])
