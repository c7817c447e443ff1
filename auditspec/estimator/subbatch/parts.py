"""Parts of minibatches: which rows of every step are taken, and what that costs.

With the share q of all rows, a microbatch of m rows is to give q m of them. Rows are counted along the stage, for the
first microbatch of its steps, the second, and so on, and taken where the running count passes whole numbers, so that shares below one row are kept on average: the rows of a step that is
taken then stand for those of the steps that are not, and weigh 1 / (q m) more. Which rows are taken is drawn from the
stage, the step, and the microbatch alone: every arm takes the same (common random numbers), and a smaller share takes
some of those of a larger one (nested).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from auditspec.errors import UnsupportedError
from auditspec.record.batches import ITEMS, tensors_in
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step

TOGETHER = 4
"""Fewest rows that are taken at once where a layer makes statistics over them (BatchNorm)."""


@dataclass(frozen=True)
class Part:
    """What is taken of one step."""

    step: Step
    """The same step on fewer rows; weights are those of the rows that are left."""
    whole: bool
    """Whether that is every row."""
    gradients: float
    """What its gradient costs, in gradients of whole microbatches."""


def parts_of(stage: StageTrajectory, share: float, together: int = 1) -> Iterator[Part | None]:
    """What is taken of each step of a stage, in order; None where no row is.

    Args:
        stage: with its steps.
        share: q, of all rows; 1 or more: all.
        together: fewest rows of a microbatch that are taken at once.
    """
    counts = taken(stage, share, together)
    for step, numbers in zip(stage.steps, counts, strict=True):
        batches, cost, whole = [], 0.0, True
        for place, (batch, number) in enumerate(zip(step.batches, numbers, strict=True)):
            few = share < 1 and share * batch.examples < _unit(batch, together)
            if (number == batch.examples and not few) or not batch.weight:
                batches.append(batch)
                cost += 1
                continue
            whole = False
            if number:
                draw = np.random.default_rng([*stage.id.encode(), step.index, place])
                rows = draw.permutation(batch.examples)[:number]
                heavier = number / (share * batch.examples) if few else 1.0
                batches.append(_with_rows(batch, sorted(int(row) for row in rows), heavier))
                cost += number / batch.examples
        if any(batch.weight for batch in batches):
            yield Part(replace(step, batches=tuple(batches)), whole, cost)
        else:
            yield None


def cost_of_parts(stage: StageTrajectory, share: float, together: int = 1) -> float:
    """What the gradients of all parts of a stage cost, in gradients of whole microbatches."""
    total = 0.0
    for step, numbers in zip(stage.steps, taken(stage, share, together), strict=True):
        if any(n for n, batch in zip(numbers, step.batches, strict=True) if batch.weight):
            total += sum(
                n / max(batch.examples, 1) if batch.weight else 1.0
                for n, batch in zip(numbers, step.batches, strict=True)
            )
    return total


def taken(stage: StageTrajectory, share: float, together: int = 1) -> list[list[int]]:
    """How many rows of each microbatch of each step are taken."""
    draw = np.random.default_rng([*stage.id.encode(), 2**32 - 1])
    widest = max((len(step.batches) for step in stage.steps), default=0)
    counted = [float(start) for start in draw.random(widest)]
    numbers = []
    for step in stage.steps:
        row = []
        for place, batch in enumerate(step.batches):
            if share >= 1 or not batch.weight:
                row.append(batch.examples)
                continue
            wanted, unit = share * batch.examples, _unit(batch, together)
            at_once = unit if wanted < unit else 1
            before, counted[place] = counted[place], counted[place] + wanted / at_once
            number = at_once * (math.floor(counted[place]) - math.floor(before))
            row.append(min(number, batch.examples))
        numbers.append(row)
    return numbers


def require_rows(stages: Sequence[StageTrajectory]) -> None:
    """Refuse minibatches that hold no rows which could be taken apart.

    Raises:
        UnsupportedError: naming the stage.
    """
    for stage in stages:
        for step in stage.steps[:1]:
            for batch in step.batches:
                if not batch.examples or not _divisible(batch):
                    raise UnsupportedError(
                        f"stage '{stage.id}': its recorded minibatches cannot be taken apart by rows; "
                        "sub-batch-replay follows rows",
                        "use estimator.method: paired-replay, or replay",
                    )


def _unit(batch: Microbatch, together: int) -> int:
    return max(1, min(together, batch.examples))


def _divisible(batch: Microbatch) -> bool:
    """Whether every tensor of a recorded batch has a row for each example, one row for all, or no rows."""
    return all(
        not tensor.dim() or len(tensor) in (1, batch.examples) for tensor in tensors_in(batch.batch)
    )


def _with_rows(batch: Microbatch, rows: list[int], heavier: float) -> Microbatch:
    """A microbatch of some of its rows."""
    ids = tuple(batch.ids[row] for row in rows) if batch.ids else batch.ids
    recorded, number = batch.batch, batch.examples
    if recorded is not None and batch.source is None:
        index = torch.tensor(rows)

        def of_rows(tensor: Tensor) -> Tensor:
            return tensor[index] if tensor.dim() and len(tensor) == number else tensor

        recorded = pytree.tree_map_only(Tensor, of_rows, recorded)
    recorded = _with_count(recorded, len(rows) / number)
    return replace(batch, ids=ids, batch=recorded, weight=batch.weight * heavier)


def _with_count(recorded: Any, share: float) -> Any:
    """A batch whose objective divides by a count of the whole step: the count of the rows that are left."""
    if isinstance(recorded, Mapping) and ITEMS in recorded:
        return {**recorded, ITEMS: recorded[ITEMS] * share}
    return recorded
