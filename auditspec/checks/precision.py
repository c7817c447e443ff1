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

    Two things are repeated in float64 on a subsample: the reading of every effect, and the first
    training steps of the leading stage's counterfactual, after which the behaviours are read. What
    changes is held against the behaviour's largest effect, or the tolerance if that is larger: weights
    that differ and give the same outputs (a bias before BatchNorm) decide nothing, and neither does a
    stage that hardly moves anything. One example of a rate, and the rounding of the reading itself, are
    no change.

    Where the training code cannot run in float64, the same is repeated in the estimate's own precision
    from weights that are all moved by one unit of rounding.
    """

    id = "precision"
    title = "Rounding does not decide the effects"
    statistic_name = "largest relative change from the estimate's precision to float64"
    source = "the same computation in two precisions (docs/checks.md)"

    def __init__(
        self,
        pairs: Sequence[TwoPrecisions],
        examples: int,
        gradients: float,
        options: Options,
        without_float64: str = "",
    ) -> None:
        self.pairs = pairs
        self.examples = examples
        """Most examples of a behaviour that were read."""
        self.gradients = gradients
        self.options = options
        self.without_float64 = without_float64
        """Why the code could not run in float64, where the weights were moved in its place."""

    def run(self) -> CheckResult:
        """Fail where float64 gives another effect; nothing to compare passes."""
        threshold = self.options.threshold
        other = "moving every weight by one unit of rounding" if self.without_float64 else "float64"
        details = [
            CheckDetail(
                subject=pair.subject,
                stage=pair.stage,
                behavior=pair.behavior,
                outcome="pass" if pair.change <= threshold else "fail",
                statistic=pair.change if np.isfinite(pair.change) else None,
                note=""
                if pair.change <= threshold
                else f"{pair.narrow:.6g}, with {other} {pair.wide:.6g}",
            )
            for pair in self.pairs
        ]
        if not self.pairs:
            return self.result("pass", "the estimate is made in float64", threshold=threshold)
        worst = max(self.pairs, key=lambda pair: pair.change)
        failed = [d.subject for d in details if d.outcome == "fail"]
        reason = (
            f"{other} gives something else for {'; '.join(failed[:3])}"
            + (f"; and {len(failed) - 3} more" if len(failed) > 3 else "")
            if failed
            else f"{other} changes nothing by more than {worst.change:.1g} of the behaviour's largest "
            f"effect, on at most {self.examples} examples a behaviour"
        )
        if self.without_float64:
            reason += f" (the code does not run in float64: {self.without_float64})"
        return self.result(
            "fail" if failed else "pass",
            reason,
            statistic=worst.change if np.isfinite(worst.change) else None,
            threshold=threshold,
            gradients=self.gradients,
            details=details,
        )
