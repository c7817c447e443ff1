"""A step of fully sharded training, made by one process: how gloo sums what ranks then hold in parts.

FSDP2 lays the gradients of some parameters side by side, one part a rank, and sums them with one reduce-scatter, which
gloo makes of its ring over all of them (`ProcessGroupGloo.cpp`); then it divides by the number of ranks, W
(torch, `_fsdp_collectives.py`: `foreach_reduce`, `_get_gradient_divide_factors`). Norms are taken part by part
(`_NormPartial` of torch.distributed.tensor):

    g = (sum_r g_r) / W,   ||g|| = || (n_1, n_2, ...) ||,   n_p = (sum_r ||g_p, part r||^2)^(1/2)      p: a parameter
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from auditspec.engine.data_parallel import Gradients, add_to, ring


def reduced(
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
        buckets: parameters of each reduce-scatter, in their order; others are added rank after rank.
    """
    factors = {n: _divisors(size, p.dtype) for n, p in parameters.items()}
    parts = [{n: None if g is None else g / factors[n][0] for n, g in own.items()} for own in ranks]
    total: Gradients = dict.fromkeys(parameters)
    for own in parts:
        add_to(total, own)
    for bucket in buckets if len(ranks) == size > 2 else ():
        laid = {n: parameters[n] for n in bucket if n in parameters}
        if len({p.dtype for p in laid.values()}) != 1:
            continue
        rows = [[_in_parts(own.get(n), p, size) for n, p in laid.items()] for own in parts]
        summed = ring([torch.cat(row, dim=1).flatten() for row in rows]).view(size, -1)
        parts_of = torch.split(summed, [own.shape[1] for own in rows[0]], dim=1)
        for n, part in zip(laid, parts_of, strict=True):
            if total[n] is not None:
                total[n] = part.reshape(-1)[: laid[n].numel()].view_as(laid[n])
    return {n: None if g is None else g / factors[n][1] for n, g in total.items()}


def norm_in_parts(gradients: Sequence[Tensor], size: int) -> Tensor:
    """The 2-norm over all gradients, as `clip_grad_norm_` takes it where W ranks hold a part of each.

    Args:
        gradients: in the order of the parameters.
        size: W.
    """
    parts = [[*torch.chunk(g, size), *[g.new_zeros(0)] * size][:size] for g in gradients]
    norms = [torch.stack(torch._foreach_norm([p[rank] for p in parts])) for rank in range(size)]
    squares = [n**2 for n in norms]
    total = ring(squares) if size > 2 else squares[0] + squares[1]
    norm: Tensor = torch.linalg.vector_norm(total**0.5)
    return norm


def _divisors(size: int, dtype: torch.dtype) -> tuple[float, float]:
    """What gradients are divided by before and after the sum: so that float16 does not overflow, and in float64."""
    if dtype in (torch.float32, torch.bfloat16):
        return 1.0, float(size)
    before = 1
    while size % before == 0 and size / before > before:
        before *= 2
    return float(before), size / before


def _in_parts(gradient: Tensor | None, parameter: Tensor, size: int) -> Tensor:
    """A gradient as W ranks take it apart, [W, numbers]: along its first dimension, filled up with zeros."""
    rows = -(-parameter.shape[0] // size) * size
    whole = torch.zeros_like(parameter) if gradient is None else gradient
    padding = [0, 0] * (parameter.dim() - 1) + [0, rows - parameter.shape[0]]
    return torch.nn.functional.pad(whole, padding).reshape(size, -1)
