"""Does an objective off the recorded path do what it did on it?

A counterfactual goes where no training went. An objective that recognises the recorded weights can be
honest there and something else elsewhere. On the segment from the recorded weights to the counterfactual
ones, theta(t) = (1 - t) theta + t theta', a loss that is a function of model and batch is continuous, and
its slope is that of its gradient:

    L(t + h) - L(t) -> 0,        dL/dt = <grad L(theta(t)), theta' - theta>

The first is tried by halving, again and again, the part of the segment that changes most, and the one that is
steepest; the second by
central differences at both ends, where only a disagreement that the recorded end does not show counts
(objectives may stop gradients on purpose). What `predict` gives is tried in the first way, from the deployed
weights to those of a counterfactual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from auditspec.engine.interface import Engine
from auditspec.record.state import State, restore
from auditspec.record.trajectory import StageTrajectory, Step

_NEAR = [4.0**-n for n in range(1, 9)]
GRID = sorted({0.0, 0.5, 1.0, *_NEAR, *(1.0 - t for t in _NEAR)})
"""Where the segment is tried at first: finer and finer towards both ends."""
SHORT = 2.0**-14
"""Length of a part that is too short for any change."""
WIDTH = 2.0**-6
"""Step of the central differences."""


@dataclass(frozen=True)
class OffPath:
    """What an objective did between recorded and counterfactual weights."""

    stage: str
    """Whose objective."""
    jump: float
    """Largest change of the loss over a part of the segment too short for it, in shares of the largest loss."""
    slope_recorded: float
    slope_counterfactual: float
    """Relative disagreement of the gradient with finite differences, at the two ends."""
    gradients: float
    """Cost, a forward pass being a third of a gradient."""


def off_path(
    rerun: Engine, stage: StageTrajectory, step: Step, recorded: State, counterfactual: State
) -> OffPath:
    """Walk from recorded to counterfactual weights, at one step of a stage.

    Args:
        rerun: the record.
        stage: whose objective is tried.
        step: whose minibatch and random state it is tried on.
        recorded: theta at the stage's start, as recorded.
        counterfactual: theta there in a counterfactual run.
    """
    start = recorded.parameters
    direction = {n: counterfactual.parameters[n].to(p) - p for n, p in start.items()}
    losses: dict[float, float] = {}

    def loss(t: float) -> float:
        if t not in losses:
            losses[t] = rerun.loss(stage, step, _at(recorded, direction, t))
        return losses[t]

    jump = _jump(lambda part: abs(loss(part[1]) - loss(part[0])))
    scale = max(abs(value) for value in losses.values()) or 1.0
    by_gradient = partial(_slope, rerun, stage, step, recorded, direction)
    here, there = (_disagreement(loss, by_gradient(t), t, scale) for t in (0.0, 1.0))
    return OffPath(stage.id, jump / scale, here, there, gradients=len(losses) / 3 + 2)


def outputs_off_path(
    read: Callable[[State], Mapping[str, Tensor]], recorded: State, counterfactual: State
) -> dict[str, float]:
    """The largest jump of a model's outputs on the way from deployed to counterfactual weights, by behaviour.

    Half of the examples change by that much, in shares of the largest output: routed and clipped models jump for a few
    of them.

    Args:
        read: outputs of a few examples of each behaviour, [n, ...].
        recorded: the deployed weights.
        counterfactual: others of the same model.
    """
    start = recorded.parameters
    direction = {n: counterfactual.parameters[n].to(p) - p for n, p in start.items()}
    outputs: dict[float, Mapping[str, Tensor]] = {}

    def at(t: float, name: str) -> Tensor:
        if t not in outputs:
            given = read(_at(recorded, direction, t))
            outputs[t] = {n: o.double().cpu().reshape(len(o), -1) for n, o in given.items()}
        return outputs[t][name]

    def change(part: tuple[float, float], name: str) -> float:
        apart = (at(part[1], name) - at(part[0], name)).abs().amax(1)
        return float(apart.median())

    jumps = {}
    for name in read(_at(recorded, direction, 0.0)):
        largest = _jump(partial(change, name=name))
        scale = max(float(o[name].abs().max()) for o in outputs.values())
        jumps[name] = largest / (scale or 1.0)
    return jumps


def _jump(change: Callable[[tuple[float, float]], float]) -> float:
    """The largest change over a part of the segment too short for it."""
    parts = [*pairwise(GRID)]
    largest = max(change(parts[0]), change(parts[-1]))
    for steepness in (change, lambda part: change(part) / (part[1] - part[0])):
        part = max(parts, key=steepness)
        while part[1] - part[0] > SHORT:
            middle = (part[0] + part[1]) / 2
            part = max((part[0], middle), (middle, part[1]), key=steepness)
        largest = max(largest, change(part))
    return largest


def _slope(
    rerun: Engine,
    stage: StageTrajectory,
    step: Step,
    recorded: State,
    direction: Mapping[str, Tensor],
    t: float,
) -> float | None:
    """<grad L(theta(t)), theta' - theta>; None where what has no gradient moves the loss too."""
    optimizer = rerun.optimizer(stage)
    restore(_at(recorded, direction, t), rerun.model)
    with rerun.training():
        gradients = rerun.gradient(stage, step, optimizer).gradients
    if any(bool(direction[n].any()) for n, g in gradients.items() if g is None):
        return None  # what the stage froze moves the loss too, and has no gradient to compare
    return sum(
        float((g.double() * direction[n].to(g.device).double()).sum())
        for n, g in gradients.items()
        if g is not None
    )


def _disagreement(
    loss: Callable[[float], float], by_gradient: float | None, t: float, scale: float
) -> float:
    """Relative disagreement of a slope with central differences; 0 where there is none to compare."""
    by_differences = (loss(t + WIDTH) - loss(t - WIDTH)) / (2 * WIDTH)
    if by_gradient is None:
        return 0.0
    size = max(abs(by_differences), abs(by_gradient), 0.02 * scale)
    return abs(by_differences - by_gradient) / size


def _at(recorded: State, direction: Mapping[str, Tensor], t: float) -> State:
    moved = {n: p + t * direction[n] for n, p in recorded.parameters.items()}
    return State(moved, recorded.buffers)
