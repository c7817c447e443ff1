"""off-path: whether objectives do away from the recorded weights what they did at them."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.interface import Check
from auditspec.estimator.off_path import OffPath
from auditspec.results import CheckDetail, CheckResult

JUMP = 0.02
"""Largest accepted jump, in shares of the loss; a continuous loss of ordinary networks shows under 1e-3."""
SLOPE, AGREED = 0.5, 0.25
"""A gradient that is off by more than SLOPE at the counterfactual weights, and by less than AGREED at the
recorded ones, is another function's."""


class OffPathCheck(Check):
    """Counts objectives that jump, or change their gradient's meaning, on the way to counterfactual weights."""

    id = "off-path"
    title = "Objectives are the same functions off the recorded path"
    role = "descriptive"
    statistic_name = "objectives that change"
    unit = "objectives"
    source = "continuity along the segment from recorded to counterfactual weights (docs/checks.md)"

    def __init__(self, found: Sequence[OffPath], without: str) -> None:
        self.found = found
        self.without = without
        """The stage whose counterfactual led off the path."""

    def run(self) -> CheckResult:
        """Fails where one changes: the counterfactual then shows what it chose to show."""
        details = [
            CheckDetail(
                subject=f"{o.stage} without {self.without}",
                stage=o.stage,
                outcome="fail" if changed(o) else "pass",
                statistic=o.jump,
                note=f"jump {o.jump:.2g} of the loss; slope off by {o.slope_recorded:.2g} at the recorded, "
                f"{o.slope_counterfactual:.2g} at the counterfactual weights",
            )
            for o in self.found
        ]
        odd = [o.stage for o in self.found if changed(o)]
        reason = (
            f"the objective of {', '.join(odd)} does otherwise off the recorded path than on it"
            if odd
            else f"{len(self.found)} objectives are continuous from recorded to counterfactual weights"
        )
        return self.result(
            "fail" if odd else "pass",
            reason,
            statistic=len(odd),
            threshold=0,
            gradients=round(sum(o.gradients for o in self.found), 3),
            details=details,
        )


def changed(found: OffPath) -> bool:
    """Whether an objective is not the same function off the recorded path."""
    turned = found.slope_counterfactual > SLOPE and found.slope_recorded < AGREED
    return found.jump > JUMP or turned
