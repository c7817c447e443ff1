"""What the estimators need of a run; each function refuses by name what is not there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from auditspec.engine.interface import Engine
from auditspec.engine.optimizers import find_rule, rule_of
from auditspec.engine.optimizers.agreement import disagreement
from auditspec.errors import EstimationError, UnsupportedError
from auditspec.record.trajectory import StageTrajectory

BATCH_STATISTICS = ("running_mean", "running_var")
"""Last names of the floating buffers whose update estimates from a part of the gradients know (BatchNorm)."""


def require_derivatives(stages: Sequence[StageTrajectory], *, gated: bool) -> None:
    """Refuse a run that the tangent estimators do not cover, by name.

    Args:
        stages: of the whole run.
        gated: whether stages are differentiated inside too (first-order); otherwise the first one
            is not.

    Raises:
        UnsupportedError: for an optimizer or option without a rule, for floating buffers
            that training changes (BatchNorm), and for tensors that a change of the model derived from
            trained ones or copied into a buffer.
    """
    refuse_derived(stages)
    for stage in stages if gated else stages[1:]:
        for group in stage.groups:
            rule_of(stage.header.optimizer, group.options)
    moving = moving_buffers(stages)
    if moving:
        raise UnsupportedError(
            f"training changes floating buffers ({', '.join(moving[:3])}), as BatchNorm does; "
            "their derivative is not available",
            "use estimator.method: replay",
        )


def require_known_steps(rerun: Engine, *, gated: bool) -> None:
    """Refuse a class of the training code that makes other steps than the rule of its name.

    Args:
        rerun: has the class.
        gated: as in `require_derivatives`.

    Raises:
        UnsupportedError: naming the class and how its steps differ.
    """
    stages = rerun.trajectory.stages
    for stage in stages if gated else stages[1:]:
        if ":" not in stage.header.optimizer:
            continue
        kind = type(rerun.optimizer(stage))
        for group in stage.groups:
            rule = rule_of(stage.header.optimizer, group.options)
            if how := disagreement(rule, kind, group.options):
                raise UnsupportedError(
                    f"stage '{stage.id}': {stage.header.optimizer} is not the {rule.name} whose "
                    f"derivatives are known ({how})",
                    "use estimator.method: replay, which takes any optimizer",
                )


def refuse_derived(stages: Sequence[StageTrajectory]) -> None:
    """A tangent follows parameters, and their copies; not what else a function makes of them.

    Raises:
        UnsupportedError: naming tensors that it does not follow.
    """
    for stage in stages[1:]:
        buffers = {info.name for info in stage.buffers if "float" in info.dtype}
        copies = buffers & stage.header.copied.keys()
        if odd := [*stage.header.derived, *sorted(copies)]:
            raise UnsupportedError(
                f"stage '{stage.id}' begins with values that were derived from trained ones "
                f"({', '.join(odd[:3])}); a displacement does not follow them",
                "use estimator.method: replay",
            )


def refuse_carried_counters(stages: Sequence[StageTrajectory]) -> None:
    """Leaving a stage out takes its steps off an optimizer's counter too, which a tangent cannot do.

    Raises:
        UnsupportedError: for an optimizer that counts its steps, carried across a boundary.
    """
    for stage in stages:
        rule = find_rule(stage.header.optimizer)
        if stage.header.boundary == "carry" and rule is not None and rule.counts_steps:
            raise UnsupportedError(
                f"stage '{stage.id}' carries {stage.header.optimizer}'s counter on; displacement "
                "does not follow it",
                "use estimator.method: replay",
            )


def require_steps(stages: Sequence[StageTrajectory]) -> None:
    """Refuse stages of which only the boundaries were recorded; simulated replay and krylov cross them.

    Raises:
        EstimationError: naming the first stage without its steps.
    """
    for stage in steps_missing(stages):
        raise EstimationError(
            f"stage '{stage}' was recorded without its steps; only simulated-replay and krylov can cross it",
            "record the run with every=N instead of every='boundaries', or declare the stages' "
            "schedules and use estimator.method: simulated-replay",
        )


def steps_missing(stages: Sequence[StageTrajectory]) -> list[str]:
    """Ids of the stages of which only the boundaries were recorded."""
    return [stage.id for stage in stages if not stage.steps and stage.header.steps]


def require_known_statistics(stages: Sequence[StageTrajectory], method: str) -> None:
    """Estimates from a part of the gradients know how BatchNorm's statistics move, and no other floating buffer.

    Raises:
        UnsupportedError: naming buffers that it does not know.
    """
    unknown = [n for n in moving_buffers(stages) if n.rpartition(".")[2] not in BATCH_STATISTICS]
    if unknown:
        raise UnsupportedError(
            f"training changes floating buffers ({', '.join(unknown[:3])}) that {method} does "
            "not know how to follow",
            "use estimator.method: replay",
        )


def moving_buffers(stages: Sequence[StageTrajectory]) -> list[str]:
    """Floating buffers that some stage changed, such as BatchNorm's statistics."""
    moving: dict[str, None] = {}
    for stage in stages:
        if any("float" in info.dtype for info in stage.buffers):
            first = stage.first.buffers
            for name, buffer in stage.last.buffers.items():
                if buffer.is_floating_point() and not torch.equal(buffer, first[name]):
                    moving[name] = None
    return list(moving)
