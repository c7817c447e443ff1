"""How far a re-run state lies from the recorded one, and whether rounding explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auditspec.record.format import TensorInfo
from auditspec.record.state import State, deviation
from auditspec.record.trajectory import StageTrajectory

THRESHOLDS = {"float32": 1e-4, "float64": 1e-9}
"""Largest accepted relative deviation of the parameters, by the record's precision."""
LOSSES = 1e-6
"""As much may a recorded loss differ where the window shows that rounding does not."""
MISSED_SHARE = 0.05
"""Largest accepted share of a window's movement that its re-run may miss."""
TELLING = 10.0
"""Numbers that another rounding would change on average, so that none changed is no chance (e^-10)."""


@dataclass(frozen=True)
class Deviation:
    """Where the re-run of a window ended, beside the recorded state."""

    deviation: float
    """Largest relative deviation: of parameters and floating buffers, or of one kind of moment."""
    missed: float
    """Share of the window's movement that the re-run misses; 0 where rounding explains it."""
    chances: float
    """How many of the state's numbers another rounding would change, about."""

    @property
    def bitwise(self) -> bool:
        """The re-run ended on the recorded state itself."""
        return self.deviation == 0

    @property
    def conclusive(self) -> bool:
        """Bitwise, and not by chance: this machine rounds as the one that trained."""
        return self.bitwise and self.chances >= TELLING


def deviation_of(begin: State, reached: State, wanted: State, steps: int) -> Deviation:
    """Compare the state that a window's re-run reached with the recorded one.

    Args:
        begin: the recorded state from which the window was re-run.
        reached: where the re-run ended.
        wanted: the recorded state there.
        steps: how many steps the window has.
    """
    return Deviation(
        deviation=max(distance(reached, wanted), optimizer_state_distance(reached, wanted)),
        missed=missed_share(begin, reached, wanted, steps),
        chances=_chances(begin, wanted),
    )


def threshold_of(parameters: Sequence[TensorInfo]) -> float:
    """Largest accepted relative deviation, by the precision of the first floating parameter."""
    floating = [info.dtype for info in parameters if "float" in info.dtype]
    return THRESHOLDS.get(floating[0] if floating else "float32", 1e-4)


def first_other_loss(
    stage: StageTrajectory, losses: Mapping[int, float], accepted: float
) -> int | None:
    """The first step whose recorded loss is not that of the re-run; None where there is none.

    Differences are taken relative to the largest loss of the stage: a loss near 0 is all rounding.

    Args:
        stage: the record's.
        losses: of the re-run, by step.
        accepted: relative difference.
    """
    scale = max((abs(step.loss) for step in stage.steps if step.loss is not None), default=0.0)
    for k, again in losses.items():
        loss = stage.steps[k].loss
        if loss is not None and not abs(again - loss) <= accepted * scale:
            return k
    return None


def distance(reached: State, wanted: State) -> float:
    """As `deviation`; infinite where a tensor of integers or truth values differs at all."""
    for ours, theirs in (
        (reached.parameters, wanted.parameters),
        (reached.buffers, wanted.buffers),
    ):
        for name, tensor in theirs.items():
            if not tensor.is_floating_point() and bool((ours[name].cpu() != tensor.cpu()).any()):
                return math.inf
    return deviation(reached, wanted)


def optimizer_state_distance(reached: State, wanted: State) -> float:
    """Largest relative deviation of one kind of moment, over all parameters.

    Infinite where the kinds or shapes differ, or a counter or plain value is not the same.
    """
    ours = {name: slots for name, slots in reached.optimizer_state.items() if slots}
    theirs = {name: slots for name, slots in wanted.optimizer_state.items() if slots}
    if {n: set(s) for n, s in ours.items()} != {n: set(s) for n, s in theirs.items()}:
        return math.inf
    worst = 0.0
    for kind in sorted({key for slots in theirs.values() for key in slots}):
        left, right = _of_kind(ours, kind), _of_kind(theirs, kind)
        if _shapes(left) != _shapes(right):
            return math.inf
        if kind != "step" and all(isinstance(value, Tensor) for value in right.values()):
            worst = max(worst, deviation(State(left, {}), State(right, {})))
        elif any(_plain(left[name]) != _plain(right[name]) for name in right):
            return math.inf
    return worst


def missed_share(begin: State, reached: State, wanted: State, steps: int) -> float:
    """The share of a window's movement ||wanted - begin|| that its re-run misses.

    0 where the re-run is as close as rounding lets it be: 2 eps sqrt(steps) ||wanted||. A small
    learning rate moves the weights little, so that closeness alone, relative to ||wanted||, would
    pass a window whose every step was made up.
    """
    moved, missed = _norm(wanted, begin), _norm(reached, wanted)
    if missed <= _rounding(wanted, steps):
        return 0.0
    return missed / moved if moved else math.inf


def needs_no_gradient(begin: State, wanted: State, steps: int) -> bool:
    """Whether a window that does not land bitwise could be made up: it moved by no more than rounding, and
    left no moments by which its gradients show.
    """
    moments = any(
        isinstance(value, Tensor) and value.dim() > 0
        for slots in wanted.optimizer_state.values()
        for value in slots.values()
    )
    return not moments and _norm(wanted, begin) <= _rounding(wanted, steps)


def _rounding(state: State, steps: int) -> float:
    """How far rounding may carry a window's end, as a norm."""
    floating = [p.dtype for p in state.parameters.values() if p.is_floating_point()]
    eps = max((torch.finfo(dtype).eps for dtype in floating), default=0.0)
    return 2 * eps * math.sqrt(steps) * _norm(state)


def _chances(begin: State, wanted: State) -> float:
    """Every moment is a fresh number, and rounds anew; a weight keeps what a small step leaves alone.

    An update's last place is eps |update|, a weight's eps |weight|: the share of weights that another
    rounding of the update changes is about ||wanted - begin|| / ||wanted||.
    """
    optimizer_state = [
        value for slots in wanted.optimizer_state.values() for value in slots.values()
    ]
    fresh = sum(
        int(torch.count_nonzero(value))
        for value in optimizer_state
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0
    )
    weights = sum(p.numel() for p in wanted.parameters.values() if p.is_floating_point())
    size = _norm(wanted)
    return fresh + (weights * _norm(wanted, begin) / size if size else 0.0)


def _of_kind(optimizer_state: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Any]:
    return {name: slots[kind] for name, slots in optimizer_state.items() if kind in slots}


def _shapes(values: Mapping[str, Any]) -> dict[str, torch.Size | None]:
    return {n: v.shape if isinstance(v, Tensor) else None for n, v in values.items()}


def _plain(value: Any) -> Any:
    """A counter, or whatever else an optimizer keeps that is no moment."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def _norm(state: State, minus: State | None = None) -> float:
    squares = 0.0
    for name, tensor in state.parameters.items():
        if tensor.is_floating_point():
            other = 0.0 if minus is None else minus.parameters[name].double().cpu()
            squares += float((tensor.double().cpu() - other).square().sum())
    return math.sqrt(squares)
