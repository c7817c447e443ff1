"""Does an objective off the recorded path do what it did on it?

A counterfactual goes where no training went. An objective that recognises the recorded weights can be
honest there and something else elsewhere. On the segment from the recorded weights to the counterfactual
ones, theta(t) = (1 - t) theta + t theta', a loss that is a function of model and batch is continuous, and
its slope is that of its gradient:

    L(t + h) - L(t) -> 0,        dL/dt = <grad L(theta(t)), theta' - theta>

The first is tried by halving, again and again, the part of the segment that changes most; the second by
central differences at both ends, where only a disagreement that the recorded end does not show counts
(objectives may stop gradients on purpose).
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

PARTS, HALVINGS = 4, 12
"""Parts of the segment at first, and how often the steepest is halved."""
TINY = 2.0**-16
"""How near to an end of the segment its neighbourhood is tried."""
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

    def change(part: tuple[float, float]) -> float:
        return abs(loss(part[1]) - loss(part[0]))

    grid = [n / PARTS for n in range(PARTS + 1)]
    part = max(pairwise(grid), key=change)
    for _ in range(HALVINGS):
        middle = (part[0] + part[1]) / 2
        part = max((part[0], middle), (middle, part[1]), key=change)
    jumps = [change(p) for p in (part, (0.0, TINY), (1.0 - TINY, 1.0))]
    scale = max(abs(value) for value in losses.values()) or 1.0
    by_gradient = partial(_slope, rerun, stage, step, recorded, direction)
    here, there = (_disagreement(loss, by_gradient(t), t, scale) for t in (0.0, 1.0))
    return OffPath(stage.id, max(jumps) / scale, here, there, gradients=len(losses) / 3 + 2)


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
