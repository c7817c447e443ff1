"""A data-parallel step, made by one process: the passes of one rank after those of another.

    g = sum_r g_r,   g_r = sum_m w_rm grad L_rm         w_rm: of microbatch m of rank r, the average over ranks included

Sums are taken in this order, as DistributedDataParallel takes them (torch's notes on it, "Internal Design"). With two
ranks they then round as there; with more, its all-reduce adds the ranks of every part of a gradient in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from auditspec.record.trajectory import Microbatch


def by_rank(
    batches: Sequence[Microbatch], buffers: Mapping[str, Tensor]
) -> Iterator[list[Microbatch]]:
    """A step's passes, rank by rank, for whoever makes them one after another.

    As under DistributedDataParallel, every rank begins with the buffers with which the step began, and what the
    passes of rank 0 leave of them is kept.

    Args:
        batches: of the step.
        buffers: that the passes write into; those of one process advance with every pass.
    """
    ranks = {batch.rank for batch in batches}
    if len(ranks) <= 1:
        yield list(batches)
        return
    begun = kept = {name: buffer.clone() for name, buffer in buffers.items()}
    for rank in sorted(ranks):
        yield [batch for batch in batches if batch.rank == rank]
        with torch.no_grad():
            if rank == 0:
                kept = {name: buffer.clone() for name, buffer in buffers.items()}
            for name, buffer in buffers.items():
                buffer.copy_(begun[name])
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(kept[name])


def add_to(total: dict[str, Tensor | None], gradients: Mapping[str, Tensor | None]) -> None:
    """Add gradients by parameter, in place; None, that of a parameter which no loss reached, adds nothing."""
    for name, gradient in gradients.items():
        before = total.get(name)
        if gradient is not None:
            total[name] = gradient if before is None else before + gradient
