"""precision: would the effects be others in float64?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auditspec.checks.interface import Check
from auditspec.results import CheckDetail, CheckResult
from auditspec.spec.models import Precision as Options


@dataclass(frozen=True)
class TwoPrecisions:
    """One number in the estimate's precision and in float64, and what their difference is held against."""

    subject: str
    narrow: float
    wide: float
    scale: float
    """In the numbers' own unit; their relative change is |narrow - wide| / scale."""
    stage: str
    behavior: str | None = None
    """None for a number that every behaviour rests on."""

    @property
    def change(self) -> float:
        """Relative change; 0 where both are equal, whatever the scale."""
        off = abs(self.narrow - self.wide)
        return off / self.scale if off and self.scale else (np.inf if off else 0.0)


class Precision(Check):
    """Largest relative change from the estimate's precision to float64.

    Two things are repeated in float64 on a subsample: the reading of every effect (held against the
    effect, or the tolerance if that is larger), and the first training steps of the leading stage's
    counterfactual (held against how far they move the parameters).
    """

    id = "precision"
    title = "Rounding does not decide the effects"
    statistic_name = "largest relative change from the estimate's precision to float64"
    source = "the same computation in two precisions (docs/checks.md)"

    def __init__(
        self, pairs: Sequence[TwoPrecisions], examples: int, gradients: float, options: Options
    ) -> None:
        self.pairs = pairs
        self.examples = examples
        """Most examples of a behaviour that were read."""
        self.gradients = gradients
        self.options = options

    def run(self) -> CheckResult:
        """Fail where float64 gives another effect; nothing to compare passes."""
        threshold = self.options.threshold
        details = [
            CheckDetail(
                subject=pair.subject,
                stage=pair.stage,
                behavior=pair.behavior,
                outcome="pass" if pair.change <= threshold else "fail",
                statistic=pair.change if np.isfinite(pair.change) else None,
                note=""
                if pair.change <= threshold
                else f"{pair.narrow:.6g}, in float64 {pair.wide:.6g}",
            )
            for pair in self.pairs
        ]
        if not self.pairs:
            return self.result("pass", "the estimate is made in float64", threshold=threshold)
        worst = max(self.pairs, key=lambda pair: pair.change)
        failed = [d.subject for d in details if d.outcome == "fail"]
        reason = (
            f"float64 gives something else for {'; '.join(failed[:3])}"
            + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")
            if failed
            else f"float64 changes no effect by more than {worst.change:.1g} of it, on at most "
            f"{self.examples} examples a behaviour"
        )
        return self.result(
            "fail" if failed else "pass",
            reason,
            statistic=worst.change if np.isfinite(worst.change) else None,
            threshold=threshold,
            gradients=self.gradients,
            details=details,
        )
