"""The states of a stage as vectors: read from the record, put into the model, made again.

Steps are made with the update maps of `steps`, on all parameters at once, block by block of those
that step alike. They differ from the recorded ones by rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim import Optimizer

from auditspec.engine.flat_parameters import FlatParameters, joined
from auditspec.engine.hessian_products import clip
from auditspec.engine.rerun import Rerun, StepGradient
from auditspec.estimator.linear.taped import TapedPasses
from auditspec.estimator.steps import Slots, slot_names, step_made, steps_made
from auditspec.record.state import named_buffers, named_parameters
from auditspec.record.trajectory import StageTrajectory, Step

TOGETHER = 2**17
"""Numbers in a vector of several steps, at most. On longer ones calls cost little beside arithmetic."""


@dataclass(frozen=True)
class Point:
    """xi_k, one vector a quantity."""

    theta: Tensor
    """[P]"""
    s: Slots
    """[P] per slot."""
    counts: tuple[int, ...]
    """Steps made so far, per parameter in the layout's order."""
    rest: tuple[Tensor, ...]
    """What no derivative is taken of: other parameters, and buffers."""
    native: bool
    """Whether it was kept in the precision that we compute in."""
    made: bool = False
    """Whether it was made again, not read."""
    step_gradient: StepGradient | None = None
    """The step from here with its gradient, where making it again told."""


@dataclass(frozen=True)
class Block:
    """A stretch of parameters that step alike."""

    at: slice
    group: int | None
    """Of the optimizer; None where the step leaves the parameters alone."""
    count: int
    """Steps made so far."""


class Points:
    """The points of one stage.

    The layout holds the parameters that this stage or one before it trains, group by group, those
    that this one does not train at the end.

    Args:
        rerun: the record; its model is working memory.
        stage: one of its stages.
        keep_gradients: whether points made again keep their step's gradient.
    """

    def __init__(self, rerun: Rerun, stage: StageTrajectory, *, keep_gradients: bool) -> None:
        self.rerun, self.stage, self.keep_gradients = rerun, stage, keep_gradients
        self.steps = rerun.steps_of(stage)
        self.optimizer: Optimizer = rerun.optimizer(stage)
        rerun.enter(stage, differentiate=True)
        self.parameters = named_parameters(rerun.model)
        moved = {n: p for n, p in self.parameters.items() if p.requires_grad}
        self.group = {
            n: i for i, g in enumerate(stage.header.groups) for n in g.parameters if n in moved
        }
        self.memory = FlatParameters(
            {n: moved[n] for n in [*self.group, *(n for n in moved if n not in self.group)]}
        )
        self.layout = self.memory.layout
        self.together = max(1, TOGETHER // len(self.memory.theta))
        """Steps that are worth taking at once."""
        taped = self.together > 1 and rerun.device.type == "cpu" and rerun.autocast(stage) is None
        self.passes = TapedPasses(rerun, stage) if taped else None
        """How gradients are computed while the parameters are in `memory`."""
        self._slots = {
            slot
            for step in self.steps
            for h in step.groups
            for slot in slot_names(stage.header.optimizer, h)
        }
        self._groups = [self.group.get(n) for n in self.layout.names]
        self._frozen = [n for n in self.parameters if n not in moved]
        self._buffers = named_buffers(rerun.model)
        self._rest = [self.parameters[n].detach() for n in self._frozen] + [*self._buffers.values()]

    def read(self, k: int) -> Point:
        """The recorded point before step k."""
        state = self.stage.state(k)
        names = self.layout.names
        optimizer_state = [state.optimizer_state.get(n, {}) for n in names]
        return Point(
            self.layout.vector(state.parameters),
            {
                slot: self.layout.vector(
                    {n: m.get(slot) for n, m in zip(names, optimizer_state, strict=True)}
                )
                for slot in self._slots
            },
            tuple(steps_made(self.stage.header.optimizer, m) for m in optimizer_state),
            (
                *(state.parameters[n] for n in self._frozen),
                *(state.buffers[n] for n in self._buffers),
            ),
            native=all(state.parameters[n].dtype == self.parameters[n].dtype for n in names),
        )

    def restore(self, point: Point) -> None:
        """Put a point into the model, whose parameters are in `memory`."""
        self.memory.theta.copy_(point.theta)
        for held, value in zip(self._rest, point.rest, strict=True):
            held.copy_(value)

    def advance(self, k: int, point: Point) -> tuple[Point, Point]:
        """Make step k again: the point with its gradient, if that is to be kept, and the next one."""
        self.restore(point)
        step_gradient = self.rerun.gradient(
            self.stage,
            self.steps[k],
            self.optimizer,
            differentiate=self.keep_gradients,
            passes=self.passes,
        )
        g = self.clipped(self.layout.vector(step_gradient.gradients))
        after = self.after(self.steps[k], point, g, reached_by(step_gradient))
        return replace(point, step_gradient=step_gradient) if self.keep_gradients else point, after

    def after(self, step: Step, point: Point, g: Tensor, reached: Container[str]) -> Point:
        """The point after a step whose gradient, clipped, is g, [P]."""
        optimizer = self.stage.header.optimizer
        theta: list[Tensor] = []
        s: dict[str, list[Tensor]] = {slot: [] for slot in point.s}
        for block in self.blocks(point, reached):
            moved, held = point.theta[block.at], {n: t[block.at] for n, t in point.s.items()}
            if block.group is not None:
                h = step.groups[block.group]
                moved, made = step_made(optimizer, moved, held, g[block.at], block.count, h)
                held |= made
            theta.append(moved)
            for slot, part in held.items():
                s[slot].append(part)
        return Point(
            joined(theta),
            {slot: joined(parts) for slot, parts in s.items()},
            self._counts_after(point, reached),
            tuple(tensor.clone() for tensor in self._rest),
            native=True,
            made=True,
        )

    def _counts_after(self, point: Point, reached: Container[str]) -> tuple[int, ...]:
        """SGD's momentum buffer tells only whether there was a step."""
        most = 1 if self.stage.header.optimizer == "SGD" else math.inf
        steps = zip(self.layout.names, self._groups, point.counts, strict=True)
        return tuple(
            count + (group is not None and n in reached and count < most)
            for n, group, count in steps
        )

    def clipped(self, g: Tensor) -> Tensor:
        """A gradient, [P], as the loop clips it."""
        limit = self.stage.header.clip_norm
        return g if limit is None else clip({"": g}, limit)[""]

    def blocks(self, point: Point, reached: Container[str]) -> Iterator[Block]:
        """The stretches of parameters that step alike; those that the loss does not reach stay."""
        kinds = [
            (group if n in reached else None, count)
            for n, group, count in zip(self.layout.names, self._groups, point.counts, strict=True)
        ]
        first = 0
        for (group, count), run in itertools.groupby(kinds):
            last = first + len(list(run))
            yield Block(slice(self.layout.ends[first], self.layout.ends[last]), group, count)
            first = last


def reached_by(step_gradient: StepGradient) -> frozenset[str]:
    """The parameters to which the loss gives a gradient."""
    return frozenset(n for n, g in step_gradient.gradients.items() if g is not None)
