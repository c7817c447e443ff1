"""Consecutive steps at once: what going back over them needs of the recorded states alone.

A step's update, its optimizer's slopes, and the gradient that its moments hold depend on no cotangent.
On a small model an operation costs its call; on the vectors of several steps it costs little more.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auditspec.engine.flat_parameters import joined
from auditspec.estimator.linear.points import Block, Point, Points
from auditspec.estimator.steps import Slots, gradient_between, slopes
from auditspec.record.trajectory import Step


@dataclass(frozen=True)
class LinearizedStep:
    """A step, but for the gradient and the cotangents."""

    step: Step
    point: Point
    after: Point
    blocks: Sequence[Block]
    slopes: Sequence[Slots]
    """Of each block, as `steps.slopes` gives them."""
    u: Tensor
    """theta_{k+1} - theta_k, [P]."""
    u_s: Slots
    """s_{k+1} - s_k, [P] per slot."""
    used: Tensor | None
    """[P], 0 where Adam's second moment is still 0 after the step, else 1; None: 1 everywhere."""
    unused: int
    """Zeros in it."""
    g: Tensor | None
    """The gradient that the moments hold, [P]; None where they do not tell, or were not asked."""

    @property
    def told(self) -> bool:
        """Whether the states around it tell the step up to our rounding."""
        return _told(self.point, self.after)


class Stretch:
    """Takes consecutive points of one stage to its steps.

    Args:
        points: of the stage.
    """

    def __init__(self, points: Points) -> None:
        self.points = points
        self.optimizer = points.stage.header.optimizer
        self._smallest = min(points.layout.sizes)
        self._lengths = torch.tensor(points.layout.sizes, device=points.memory.theta.device)

    def __call__(
        self,
        steps: Sequence[Step],
        states: Sequence[Point],
        reached: Container[str],
        *,
        read_off: bool = False,
    ) -> list[LinearizedStep]:
        """The steps between states.

        Args:
            steps: consecutive steps.
            states: the point before each of them, and that after the last.
            reached: the parameters that their losses reach.
            read_off: whether the gradients in the moments are wanted.
        """
        blocks = [[*self.points.blocks(state, reached)] for state in states[:-1]]

        def kind(i: int) -> list[Any]:
            """Steps of one kind differ in no more than their learning rates and counters."""
            return [(b.at, b.group, b.count == 0, _but_rate(steps[i], b.group)) for b in blocks[i]]

        found: list[LinearizedStep] = []
        for _, run in itertools.groupby(range(len(steps)), kind):
            first, stop = len(found), len(found) + len([*run])
            found += self._alike(
                steps[first:stop], states[first : stop + 1], blocks[first:stop], read_off
            )
        return found

    def _alike(
        self,
        steps: Sequence[Step],
        states: Sequence[Point],
        blocks: Sequence[Sequence[Block]],
        read_off: bool,
    ) -> list[LinearizedStep]:
        """Steps of one kind."""
        theta, theta_next = _pairs([state.theta for state in states])
        pairs = {slot: _pairs([state.s[slot] for state in states]) for slot in states[0].s}
        s, s_next = ({slot: pair[i] for slot, pair in pairs.items()} for i in (0, 1))
        u, u_s = theta_next - theta, {slot: s_next[slot] - s[slot] for slot in s}
        slope: list[Slots] = []
        read: list[Tensor | None] = []
        for j, block in enumerate(blocks[0]):
            if block.group is None:
                slope.append({})
                continue
            h = steps[0].groups[block.group]
            here, later = ({slot: x[:, block.at] for slot, x in m.items()} for m in (s, s_next))
            slope.append(slopes(self.optimizer, later, [b[j].count for b in blocks], h))
            if read_off:
                at = theta[:, block.at]
                read.append(gradient_between(self.optimizer, h, at, here, later, block.count))
        held = [g for g in read if g is not None]
        g = joined(held) if len(held) == len(blocks[0]) else None
        tells = [False] * len(blocks) if g is None else self._tells(states, u_s)
        used = s_next["exp_avg_sq"].sign() if "exp_avg_sq" in s_next else None
        unused = [0] * len(blocks) if used is None else _zeros(used)
        return [
            LinearizedStep(
                step,
                states[i],
                states[i + 1],
                blocks[i],
                [{slot: rows[i] for slot, rows in part.items()} for part in slope],
                u[i],
                {slot: rows[i] for slot, rows in u_s.items()},
                used[i] if used is not None and unused[i] else None,
                unused[i],
                g[i] if g is not None and tells[i] else None,
            )
            for i, step in enumerate(steps)
        ]

    def _tells(self, states: Sequence[Point], u_s: Slots) -> list[bool]:
        """Whether the moments hold the gradients: every parameter made its step."""
        still = self._stood_still(u_s) if self.optimizer == "SGD" else [False] * (len(states) - 1)
        return [
            _told(before, after)
            and (
                all(b == a + 1 for a, b in zip(before.counts, after.counts, strict=True))
                or (self.optimizer == "SGD" and set(before.counts) == set(after.counts) == {1})
            )
            and not unmoved
            for (before, after), unmoved in zip(itertools.pairwise(states), still, strict=True)
        ]

    def _stood_still(self, u_s: Slots) -> list[bool]:
        """Whether a parameter's momentum buffer is unchanged, as where the loss did not reach it."""
        change = u_s["momentum_buffer"]
        return [
            zero >= self._smallest
            and bool((torch.segment_reduce(row.abs(), "max", lengths=self._lengths) == 0).any())
            for row, zero in zip(change, _zeros(change), strict=True)
        ]


def _told(before: Point, after: Point) -> bool:
    """Both have our precision, and no state made again is followed by a read one, which is off by more."""
    return before.native and after.native and (after.made or not before.made)


def _but_rate(step: Step, group: int | None) -> dict[str, Any]:
    """Hyperparameters of a group, without the learning rate, which a schedule changes."""
    return {} if group is None else {n: x for n, x in step.groups[group].items() if n != "lr"}


def _pairs(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[steps, P] before and after the steps between states."""
    if len(states) == 2:
        return states[0][None], states[1][None]
    rows = torch.stack([*states])
    return rows[:-1], rows[1:]


def _zeros(rows: Tensor) -> list[int]:
    """The number of zeros in each row."""
    if rows.amin() != 0:
        return [0] * len(rows)
    return [row.numel() - int(row.count_nonzero()) for row in rows]
