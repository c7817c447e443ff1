"""The recurrence of a linear update rule (`LinearRule`) over the steps of a segment, on eigenvalues.

With the curvature H and the preconditioner P held over a segment, a displacement and that of the first
moment go through its steps by scalars alone in an eigenbasis of A = P^(1/2) (+-H + Lambda) P^(1/2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auditspec.engine.optimizers.interface import Coefficients


def propagate(
    values: Tensor,
    steps: Sequence[Sequence[Coefficients]],
    grams: Sequence[Tensor],
    y: Tensor,
    nu: Tensor,
    force: Tensor,
    *,
    stable: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence over the steps of a segment, in an eigenbasis of A.

    Args:
        values: eigenvalues of A, [m].
        steps: the scalars of every step, one tuple per parameter group.
        grams: G_g = Q_g Q_g^T [m, m], the part of each group in the basis; they sum to the identity.
        y: displacements, [m, c].
        nu: displacements of the first moment, [m, c].
        force: constant part of g' (of parameters that are displaced and not trained), [m, c].
        stable: whether a step takes values beyond its limit at half of it, where it damps.
    """

    def by_group(scalars: Sequence[float], x: Tensor) -> Tensor:
        if all(scalar == scalars[0] for scalar in scalars):
            return scalars[0] * x
        return torch.stack([s * gram for s, gram in zip(scalars, grams, strict=True)]).sum(0) @ x

    for groups in steps:
        a, b, w, p, q = zip(*groups, strict=True)
        damped = values
        if stable:
            limit = min(group.limit for group in groups)
            damped = torch.where(values > limit, limit / 2, values)
        g = damped[:, None] * y + force
        nu = by_group(a, nu) + by_group(b, g)
        y = y - by_group(w, y) - by_group(p, g) - by_group(q, nu)
    return y, nu
