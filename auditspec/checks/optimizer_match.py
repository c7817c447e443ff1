"""optimizer-match: the record's optimizers are the ones that the spec declares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from auditspec.checks.interface import Check
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import CheckDetail, CheckResult
from auditspec.spec.models import Optimizer, Stage

RATE_TOLERANCE = 1e-6
"""Relative to the stage's largest learning rate."""
_HYPERPARAMETERS = (
    "momentum",
    "dampening",
    "nesterov",
    "weight_decay",
    "maximize",
    "betas",
    "eps",
    "amsgrad",
)


class OptimizerMatch(Check):
    """Counts declared fields that differ from the record (threshold 0).

    Every declared hyperparameter must hold in every parameter group and at every recorded step;
    the learning rate's largest value must be the declared one, and its course the declared
    schedule (cosine: lr/2 (1 + cos(pi t / T)), t = 0 … T-1, Loshchilov & Hutter 2017).
    """

    id = "optimizer-match"
    title = "The recorded optimizers are the declared ones"
    statistic_name = "fields that differ"
    unit = "fields"

    def __init__(self, stages: Sequence[Stage], trajectory: Trajectory) -> None:
        self.stages = stages
        self.trajectory = trajectory

    def run(self) -> CheckResult:
        """Compare stage by stage; other stages, or another order, differ too."""
        declared = [stage.id for stage in self.stages]
        recorded = [stage.id for stage in self.trajectory.stages]
        if declared != recorded:
            note = f"declared {', '.join(declared)}; recorded {', '.join(recorded)}"
            return self.result(
                "fail",
                f"the stages differ: {note}",
                statistic=1,
                threshold=0,
                details=[CheckDetail(subject="stages", outcome="fail", note=note)],
            )
        details, differing = [], 0
        for stage, trajectory in zip(self.stages, self.trajectory.stages, strict=True):
            notes = list(_differences(stage, trajectory))
            differing += len(notes)
            details.append(
                CheckDetail(
                    subject=stage.id,
                    outcome="fail" if notes else "pass",
                    statistic=len(notes),
                    note="; ".join(notes) or "every declared field matches",
                )
            )
        reason = (
            "; ".join(f"{d.subject}: {d.note}" for d in details if d.outcome == "fail")
            if differing
            else f"every declared field of {len(details)} stages matches the record"
        )
        return self.result(
            "fail" if differing else "pass",
            reason,
            statistic=differing,
            threshold=0,
            details=details,
        )


def _differences(stage: Stage, trajectory: StageTrajectory) -> Iterator[str]:
    declared, header = stage.optimizer, trajectory.header
    if header.objective.name != stage.objective:
        yield f"objective {stage.objective} declared, {header.objective.name} recorded"
    if declared.name != header.optimizer:
        yield f"optimizer {declared.name} declared, {header.optimizer} recorded"
    if declared.state is not None and declared.state != header.boundary:
        yield f"optimizer state {declared.state} declared, {header.boundary} recorded"
    if set(stage.data) != set(header.datasets):
        yield f"data {', '.join(stage.data)} declared, {', '.join(header.datasets)} recorded"
    steps = trajectory.steps
    groups = [group for step in steps for group in step.groups] or [
        dict(group.options) for group in header.groups
    ]
    wanted = {
        key: value for key in _HYPERPARAMETERS if (value := getattr(declared, key)) is not None
    } | declared.options
    for key, value in wanted.items():
        found = {_plain(group.get(key)) for group in groups}
        if found != {_plain(value)}:
            yield f"{key} {value} declared, {', '.join(sorted(map(str, found)))} recorded"
    yield from _rate_differences(declared, [float(step.groups[0]["lr"]) for step in steps])


def _rate_differences(declared: Optimizer, rates: list[float]) -> Iterator[str]:
    if not rates:
        return
    within = RATE_TOLERANCE * declared.lr
    if abs(max(rates) - declared.lr) > within:
        yield f"largest lr {declared.lr:g} declared, {max(rates):g} recorded"
    elif declared.schedule != "recorded":
        for t, rate in enumerate(rates):
            expected = declared.lr
            if declared.schedule == "cosine":
                expected *= 0.5 * (1 + math.cos(math.pi * t / len(rates)))
            if abs(rate - expected) > within:
                yield f"schedule {declared.schedule} declared; lr {rate:g} at step {t}, not {expected:g}"
                return


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(float(v) for v in value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
