"""What one step takes from its minibatch: the clipped gradient, and the batch statistics.

A step of training is xi' = U(xi, y; h): U is known, and everything that depends on the data enters
through the signal y. For parameters y is the gradient after clipping. A running statistic of
BatchNorm moves as B' = (1 - f) B + f y, y the batch's own statistic and f the layer's momentum; it
is a signal like any other. Integer buffers count steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from auditspec.engine.clipping import clip
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.optimizers import find_rule
from auditspec.errors import UnsupportedError
from auditspec.record.state import (
    OptimizerState,
    State,
    named_buffers,
    named_parameters,
)
from auditspec.record.trajectory import StageTrajectory, Step
from auditspec.record.uncompiled import uncompiled

Tensors = dict[str, Tensor]
VARIANCE = "running_var"
"""Last name of the statistics that an estimate must not make negative."""


@dataclass(frozen=True)
class Signal:
    """y_k: gradients by parameter and statistics by buffer; a parameter without a gradient is absent."""

    gradients: Tensors
    statistics: Tensors
    counts: Tensors
    """What the step adds to each integer buffer."""


def state_of(signal: Signal) -> State:
    """A signal as a state, to be noted: what moves parameters, and what moves buffers.

    The parts of sparse gradients stand among the moments.
    """
    dense = {n: g for n, g in signal.gradients.items() if not g.is_sparse}
    sparse: OptimizerState = {
        n: {
            "indices": g._indices(),
            "values": g._values(),
            "size": list(g.shape),
            "is_coalesced": g.is_coalesced(),
        }
        for n, g in signal.gradients.items()
        if g.is_sparse
    }
    return State(dense, signal.statistics | signal.counts, sparse)


def signal_of(noted: State, device: torch.device) -> Signal:
    """What `state_of` gave, on a device."""
    gradients = {n: g.to(device) for n, g in noted.parameters.items()}
    for name, parts in noted.optimizer_state.items():
        gradients[name] = torch.sparse_coo_tensor(**parts, device=device, check_invariants=True)
    buffers = {n: b.to(device) for n, b in noted.buffers.items()}
    counts = {n: b for n, b in buffers.items() if _counts(b)}
    return Signal(gradients, {n: b for n, b in buffers.items() if n not in counts}, counts)


def require_known_buffers(rerun: Engine, method: str) -> None:
    """Refuse floating buffers that training changes and whose update is not known.

    Raises:
        UnsupportedError: for any but the running statistics of BatchNorm layers.
    """
    moving: list[str] = []
    for stage in rerun.trajectory.stages:
        rerun.enter(stage)
        known, first = _running(rerun), stage.first.buffers
        moving += [
            name
            for name, buffer in stage.last.buffers.items()
            if buffer.is_floating_point()
            and name not in known
            and not torch.equal(buffer, first[name])
        ]
    if moving:
        raise UnsupportedError(
            f"training changes floating buffers ({', '.join(moving[:3])}) that are not the running "
            f"statistics of a BatchNorm layer; {method} cannot follow them",
            "use estimator.method: replay",
        )


def observe(
    rerun: Engine, stage: StageTrajectory, step: Step, optimizer: Optimizer, *, clipped: bool = True
) -> Signal:
    """y_k at the model's present state, on step k's own minibatch. Leaves the state as it was.

    Args:
        rerun: has the model.
        stage: whose objective is taken.
        step: gives the minibatch and its random state.
        optimizer: of the stage.
        clipped: False gives the gradient as it is before clipping.
    """
    before = {n: b.clone() for n, b in named_buffers(rerun.model).items()}
    step_gradient = rerun.gradient(stage, step, optimizer)
    limit = stage.header.clip_norm if clipped else None
    signal = _signal(rerun, before, step_gradient, limit)
    with torch.no_grad():
        for name, buffer in named_buffers(rerun.model).items():
            buffer.copy_(before[name])
    return signal


def make(
    rerun: Engine, stage: StageTrajectory, step: Step, optimizer: Optimizer
) -> tuple[Signal, float]:
    """Make a step of training from the model's present state, as it is made in training: y_k, clipped, and the loss."""
    before = {n: b.clone() for n, b in named_buffers(rerun.model).items()}
    step_gradient = rerun.gradient(stage, step, optimizer)
    signal = _signal(rerun, before, step_gradient, stage.header.clip_norm)
    own = {
        n: g.clone() for n, g in signal.gradients.items()
    }  # an optimizer may work in the gradient's place
    rerun.update(step_gradient)
    return replace(signal, gradients=own), step_gradient.loss


def _signal(
    rerun: Engine, before: Tensors, step_gradient: StepGradient, limit: float | None
) -> Signal:
    """Of a gradient, with the buffers as they were before its passes and as these have left them."""
    after = {n: b.clone() for n, b in named_buffers(rerun.model).items()}
    return Signal(
        clip(step_gradient.gradients, limit),
        _statistics(rerun, before, after, step_gradient.step.kept_passes),
        {n: after[n] - b for n, b in before.items() if _counts(b)},
    )


def advance(rerun: Engine, optimizer: Optimizer, step: Step, signal: Signal) -> None:
    """Make the update xi := U(xi, y; h_k), by the optimizer's own update."""
    buffers = named_buffers(rerun.model)
    running = _running(rerun) if signal.statistics else {}
    with torch.no_grad():
        for name, statistic in signal.statistics.items():
            keep = _decay(*running[name], step.kept_passes, buffers)
            buffers[name].mul_(keep).add_(statistic, alpha=1 - keep)
        for name, count in signal.counts.items():
            buffers[name].add_(count)
    for name, parameter in named_parameters(rerun.model).items():
        gradient = signal.gradients.get(name)
        parameter.grad = None if gradient is None else gradient.clone()
    for group, options in zip(optimizer.param_groups, step.groups, strict=True):
        group.update(options)
    with uncompiled():
        optimizer.step()
        optimizer.zero_grad()


def read_off(
    rerun: Engine, stage: StageTrajectory, step: Step, before: State, after: State
) -> Signal:
    """y_k of the recorded run from the states around step k; costs no gradient.

    The states must hold it (`UpdateRule.gradient_between`).
    """
    parameters, rule = named_parameters(rerun.model), find_rule(stage.header.optimizer)
    gradients: Tensors = {}
    skipped = {*stage.header.frozen, *(step.without_gradient or ())}
    for group, h in zip(stage.header.groups, step.groups, strict=True):
        for name in group.parameters:
            if rule is None or name not in after.optimizer_state or name in skipped:
                continue
            theta = before.parameters[name].to(parameters[name])
            s, steps_made = rule.read(_like(before, name, theta), theta, h)
            s_next, _ = rule.read(_like(after, name, theta), theta, h)
            gradient = rule.gradient_between(theta, s, s_next, steps_made, h)
            if gradient is not None:
                gradients[name] = gradient
    buffers = named_buffers(rerun.model)
    b, b_next = (
        {n: v.to(buffers[n]) for n, v in state.buffers.items()} for state in (before, after)
    )
    return Signal(
        gradients,
        _statistics(rerun, b, b_next, step.kept_passes),
        {n: b_next[n] - v for n, v in b.items() if _counts(v)},
    )


def _counts(buffer: Tensor) -> bool:
    return not buffer.is_floating_point() and buffer.dtype != torch.bool


def _like(state: State, name: str, theta: Tensor) -> dict[str, Any]:
    return {
        key: value.to(theta) if isinstance(value, Tensor) and value.dim() else value
        for key, value in state.optimizer_state.get(name, {}).items()
    }


def _running(rerun: Engine) -> dict[str, tuple[float | None, str]]:
    """Running statistics by buffer name: their layer's momentum and its counter's name."""
    layers: dict[str, tuple[float | None, str]] = {}
    for prefix, module in rerun.model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            lead = f"{prefix}." if prefix else ""
            for name in ("running_mean", VARIANCE):
                layers[lead + name] = (module.momentum, lead + "num_batches_tracked")
    return {n: v for n, v in layers.items() if n in named_buffers(rerun.model)}


def _decay(momentum: float | None, counter: str, batches: int, buffers: Tensors) -> float:
    """What a step leaves of a running statistic: (1 - f)^batches, or by count where f is None."""
    if momentum is not None:
        return (1 - momentum) ** batches
    behind = int(buffers[counter])
    return behind / (behind + batches)


def _statistics(rerun: Engine, before: Tensors, after: Tensors, batches: int) -> Tensors:
    """Batch statistics y with B' = keep B + (1 - keep) y, of every running statistic."""
    statistics: Tensors = {}
    for name, layer in _running(rerun).items():
        keep = _decay(*layer, batches, before)
        if keep < 1:
            statistics[name] = (after[name] - keep * before[name]) / (1 - keep)
    return statistics
