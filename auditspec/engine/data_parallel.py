"""A data-parallel step, made by one process: the passes of one rank after those of another.

    g = sum_r g_r / W,   g_r = sum_m w_rm grad L_rm         w_rm: of microbatch m in the gradient of rank r, of W

Sums are taken in this order, as DistributedDataParallel takes them (torch's notes on it, "Internal Design"), and
those over ranks as gloo takes them (`gloo/allreduce.cc`, the ring): the same numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from auditspec.record.trajectory import Microbatch

Gradients = dict[str, Tensor | None]
"""By parameter; None where no loss reaches it."""
SEGMENT = 2**20
"""Bytes of gloo's largest segment."""


def turns(batches: Sequence[Microbatch], *, each: bool) -> list[list[Microbatch]]:
    """A step's passes, by the sum over ranks that their gradients go into.

    Args:
        batches: of the step.
        each: whether every pass of a rank is summed with those of the others by itself, before the next one; else all are
            summed at once.
    """
    if not each:
        return [list(batches)]
    by_turn: list[list[Microbatch]] = []
    made: dict[int, int] = {}
    for batch in batches:
        turn = made[batch.rank] = made.get(batch.rank, -1) + 1
        if turn == len(by_turn):
            by_turn.append([])
        by_turn[turn].append(batch)
    return by_turn


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
    if ranks <= {0}:
        yield list(batches)
        return
    begun = kept = {name: buffer.clone() for name, buffer in buffers.items()}
    for rank in sorted(ranks):
        yield [batch for batch in batches if batch.rank == rank]
        if rank == 0:
            kept = {name: buffer.clone() for name, buffer in buffers.items()}
        _put(begun, buffers)
    _put(kept, buffers)


def _put(values: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    """Write into the buffers that are others, unseen by graphs that are still to be differentiated.

    As DistributedDataParallel does: BatchNorm's statistics are in no graph of train mode, and nothing that is
    differentiated twice goes through other floating buffers that passes write (`require_known_buffers`).
    """
    other = {n: b for n, b in buffers.items() if not torch.equal(b, values[n])}
    with (
        torch.no_grad(),
        torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(other.values())),
    ):
        for name, buffer in other.items():
            buffer.copy_(values[name])


def add_to(total: Gradients, gradients: Mapping[str, Tensor | None]) -> None:
    """Add gradients by parameter, in place; None, that of a parameter which no loss reached, adds nothing."""
    for name, gradient in gradients.items():
        before = total.get(name)
        if gradient is not None:
            total[name] = gradient if before is None else before + gradient


def averaged(
    ranks: Sequence[Gradients],
    size: int,
    parameters: Mapping[str, Tensor],
    buckets: Sequence[Sequence[str]],
) -> Gradients:
    """The average over ranks, by parameter.

    Args:
        ranks: the gradients of those that made a pass, in their order; None where no loss of one reached a parameter.
        size: how many ranks there are, W.
        parameters: of the model.
        buckets: parameters of each bucket, in their order; others are added rank after rank.
    """
    if size > 1:
        ranks = [
            {n: None if g is None else g * (1 / size) for n, g in own.items()} for own in ranks
        ]
    total: Gradients = dict.fromkeys(parameters)
    for own in ranks:
        add_to(total, own)
    for bucket in buckets if len(ranks) > 2 else ():
        laid = {n: parameters[n] for n in bucket if n in parameters}
        if len({p.dtype for p in laid.values()}) != 1 or any(_sparse(total[n]) for n in laid):
            continue
        flat = [torch.cat([_or_zeros(own.get(n), p) for n, p in laid.items()]) for own in ranks]
        parts = torch.split(ring(flat), [p.numel() for p in laid.values()])
        for part, (name, parameter) in zip(parts, laid.items(), strict=True):
            if total[name] is not None:
                total[name] = part.view_as(parameter)
    return total


def ring(flat: Sequence[Tensor]) -> Tensor:
    """The sum over n ranks, as gloo's ring takes it.

    The numbers are cut into segments, a multiple of n and at least 2 n of them, of at most 1 MiB where there are more; rank c
    owns the c-th n-th of the segments. What it owns begins with rank c - 1, and goes down, c - 2, ..., to c itself.

    Args:
        flat: [numbers] of each rank.
    """
    n, numbers, width = len(flat), flat[0].numel(), flat[0].element_size()
    segments = n * math.ceil(max(math.ceil(numbers * width / SEGMENT), 2 * n) / n)
    owned = math.ceil(numbers / segments) * (segments // n)
    sums = []
    for owner, parts in enumerate(zip(*(torch.split(rank, owned) for rank in flat), strict=True)):
        total = parts[(owner - 1) % n]
        for back in range(2, n + 1):
            total = total + parts[(owner - back) % n]
        sums.append(total)
    return torch.cat(sums)


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient as a bucket holds it, where zeros stand for none, [numbers]."""
    return (torch.zeros_like(parameter) if gradient is None else gradient).flatten()


def _sparse(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.is_sparse
