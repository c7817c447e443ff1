"""off-path: whether objectives and outputs do away from the recorded weights what they did at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.estimator.off_path import OffPath, off_path, outputs_off_path
from auditspec.how_much import most_examples
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult
from auditspec.spot_checks import leading

JUMP = 0.02
"""Largest accepted jump, in shares of the loss; a continuous loss of ordinary networks shows under 1e-3."""
EXAMPLES = 16
"""Of each behaviour, whose outputs are tried."""
SLOPE, AGREED = 0.5, 0.25
"""A gradient that is off by more than SLOPE at the counterfactual weights, and by less than AGREED at the
recorded ones, is another function's."""


class OffPathCheck(Check):
    """Counts objectives and outputs that jump, or change a gradient's meaning, on the way to counterfactual weights."""

    id = "off-path"
    title = "Objectives and outputs are the same functions off the recorded path"
    statistic_name = "functions that change"
    unit = "functions"
    source = "continuity along the segment from recorded to counterfactual weights (docs/checks.md)"
    bars = "behavior"
    bars_when = "failed"
    remedy = message("settle-honest-objective")
    looks_at = (Estimated,)

    def __init__(
        self, objectives: Sequence[OffPath], outputs: Mapping[str, float], without: str
    ) -> None:
        self.objectives = objectives
        self.outputs = outputs
        """Jumps of what the model gives, by behaviour."""
        self.without = without
        """The stage whose counterfactual led off the path."""

    @classmethod
    def of(cls, subject: Subject) -> OffPathCheck | CheckResult:
        """Along the run without the stage that leads, at the first step of every later stage."""
        estimated = subject[Estimated]
        rerun, starts = estimated.reader.rerun, estimated.run.starts
        stages = rerun.trajectory.stages
        ranked = leading(subject.spec, estimated.effects, estimated=False)
        if not ranked:
            return cls.skipped(message("no-stage-off-path"))
        trained = [s for s in ranked if estimated.effects[s].counterfactual.path]
        without = (trained or ranked)[0]
        arm = estimated.effects[without].counterfactual
        reader, _ = estimated.reader.thinned(
            rerun, min(EXAMPLES, most_examples(None, rerun.trajectory))
        )
        outputs = outputs_off_path(reader.first_outputs, stages[-1].last, arm.state)
        segments = []
        if trained:
            index = rerun.trajectory.index(without)
            state = starts.get(without, stages[index].first)
            for later, stage in enumerate(stages[index + 1 :], index + 1):
                begin = rerun.carry_over(later, state)
                if stage.steps:
                    recorded = starts.get(stage.id, stage.first)
                    segments.append(off_path(rerun, stage, stage.steps[0], recorded, begin))
                state = arm.path.get(stage.id, begin)
        return cls(segments, outputs, without)

    def run(self) -> CheckResult:
        """Fails where one changes: the counterfactual then shows what it chose to show."""
        details = [
            CheckDetail(
                subject=f"{o.stage} without {self.without}",
                stage=o.stage,
                outcome="fail" if changed(o) else "pass",
                statistic=o.jump,
                notes=(
                    message("loss-jumps", jump=float(o.jump)),
                    message(
                        "slope-off",
                        recorded=float(o.slope_recorded),
                        counterfactual=float(o.slope_counterfactual),
                    ),
                ),
            )
            for o in self.objectives
        ]
        details += [
            CheckDetail(
                subject=f"{behavior} without {self.without}",
                behavior=behavior,
                outcome="fail" if jump > JUMP else "pass",
                statistic=jump,
                notes=(message("outputs-jump", jump=float(jump)),),
            )
            for behavior, jump in self.outputs.items()
        ]
        odd = [str(d.stage or d.behavior) for d in details if d.outcome == "fail"]
        continuous = message(
            "objectives-continuous", objectives=len(self.objectives), behaviors=len(self.outputs)
        )
        return self.result(
            "fail" if odd else "pass",
            message("objectives-change", stages=odd) if odd else continuous,
            statistic=len(odd),
            threshold=0,
            gradients=round(sum(o.gradients for o in self.objectives), 3),
            details=details,
        )


def changed(objective: OffPath) -> bool:
    """Whether an objective is not the same function off the recorded path."""
    turned = objective.slope_counterfactual > SLOPE and objective.slope_recorded < AGREED
    return objective.jump > JUMP or turned
