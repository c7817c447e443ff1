"""optimizer-match: the record's optimizers are the ones that the spec declares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from auditspec.checks.interface import Check
from auditspec.record.trajectory import StageTrajectory, Step, Trajectory
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
    source = "the spec, field by field; cosine schedule: Loshchilov & Hutter 2017"

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
    extend = header.extend.name if header.extend else None
    if extend != stage.extend:
        yield f"extend {stage.extend or 'nothing'} declared, {extend or 'nothing'} recorded"
    if declared.name != header.optimizer:
        yield f"optimizer {declared.name} declared, {header.optimizer} recorded"
    if declared.state is not None and declared.state != header.boundary:
        yield f"optimizer state {declared.state} declared, {header.boundary} recorded"
    held = any(batch.dataset is None for step in trajectory.steps for batch in step.batches)
    declared_data, recorded_data = set(stage.data), set(header.datasets)
    if not (recorded_data <= declared_data if held else recorded_data == declared_data):
        yield f"data {', '.join(stage.data)} declared, {', '.join(header.datasets)} recorded"
    steps = trajectory.steps
    read = {batch.dataset for step in steps for batch in step.batches} - {None}
    if stray := sorted(str(name) for name in read - recorded_data):
        yield f"steps read data that the record's stage does not name: {', '.join(stray)}"
    if any(len(step.groups) != len(header.groups) for step in steps):
        yield f"{len(header.groups)} parameter groups in the record's header, others at its steps"
        return
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
    if steps:
        courses = [[float(rate["lr"]) for rate in course] for course in _by_group(steps)]
        yield from _rate_differences(declared, courses)


def _by_group(steps: Sequence[Step]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """The hyperparameters of each parameter group, step by step."""
    yield from zip(*(step.groups for step in steps), strict=True)


def _rate_differences(declared: Optimizer, courses: list[list[float]]) -> Iterator[str]:
    """The largest rate of all groups, and each group's course in shares of its own largest."""
    tops = [max(rates) for rates in courses]
    top = max(tops)
    if not abs(top - declared.lr) <= RATE_TOLERANCE * declared.lr:
        yield f"largest lr {declared.lr:g} declared, {top:g} recorded"
    elif declared.schedule != "recorded":
        for group, (rates, largest) in enumerate(zip(courses, tops, strict=True)):
            for t, rate in enumerate(rates):
                expected = largest
                if declared.schedule == "cosine":
                    expected *= 0.5 * (1 + math.cos(math.pi * t / len(rates)))
                if not abs(rate - expected) <= RATE_TOLERANCE * declared.lr:
                    place = f"step {t}" + (f" of group {group}" if len(courses) > 1 else "")
                    yield f"schedule {declared.schedule} declared; lr {rate:g} at {place}, not {expected:g}"
                    return


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
