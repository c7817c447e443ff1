"""optimizer-match: the record's optimizers are the ones that the spec declares."""

from __future__ import annotations

from collections.abc import Sequence

from auditspec.checks.declared import differences
from auditspec.checks.interface import Check
from auditspec.checks.subject import Subject
from auditspec.gather import Opened
from auditspec.messages import message
from auditspec.record.trajectory import Trajectory
from auditspec.results import CheckDetail, CheckResult
from auditspec.spec.models import Stage


class OptimizerMatch(Check):
    """Counts declared fields that differ from the record (threshold 0).

    Every declared hyperparameter must hold in every parameter group and at every recorded step;
    the learning rate's largest value must be the declared one, and its course the declared
    schedule (`schedules`).
    """

    id = "optimizer-match"
    title = "The recorded optimizers are the declared ones"
    statistic_name = "fields that differ"
    unit = "fields"
    source = "the spec, field by field; schedules as torch and transformers compute them"
    bars = "all"
    looks_at = (Opened,)
    halts = message("not-the-declared-training")

    def __init__(self, stages: Sequence[Stage], trajectory: Trajectory) -> None:
        self.stages = stages
        self.trajectory = trajectory

    @classmethod
    def of(cls, subject: Subject) -> OptimizerMatch:
        """On the record, none of whose code is executed."""
        return cls(subject.spec.stages, subject[Opened].trajectory)

    def run(self) -> CheckResult:
        """Compare stage by stage; other stages, or another order, differ too."""
        declared = [stage.id for stage in self.stages]
        recorded = [stage.id for stage in self.trajectory.stages]
        if declared != recorded:
            note = message("stages-differ", declared=declared, recorded=recorded)
            return self.result(
                "fail",
                note,
                statistic=1,
                threshold=0,
                details=[CheckDetail(subject="stages", outcome="fail", notes=(note,))],
            )
        details, differing = [], 0
        for stage, trajectory in zip(self.stages, self.trajectory.stages, strict=True):
            notes = tuple(difference.note for difference in differences(stage, trajectory))
            differing += len(notes)
            details.append(
                CheckDetail(
                    subject=stage.id,
                    outcome="fail" if notes else "pass",
                    statistic=len(notes),
                    notes=notes or (message("fields-match"),),
                )
            )
        reasons = [d.line for d in details if d.outcome == "fail"]
        return self.result(
            "fail" if differing else "pass",
            reasons or message("stages-match", stages=len(details)),
            statistic=differing,
            threshold=0,
            details=details,
        )
