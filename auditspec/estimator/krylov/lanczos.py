"""A Krylov basis of a symmetric operator from several start vectors, and the operator on it.

Band Lanczos (Ruhe 1979) with deflation (Freund 2000) and full reorthogonalisation: vectors wait in a
queue; the next one, cleared of the basis, joins it, and its image under the operator joins the
queue. The basis begins with the start vectors, so each lies in its span, and a polynomial of low
degree in the operator applied to them does too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis Q and T = Q A Q^T."""

    basis: Tensor
    """Q, [m, N]; rows in the order in which they were found."""
    images: Tensor
    """Q A, [m, N]"""
    projected: Tensor
    """T, [m, m], float64, symmetric."""

    def __len__(self) -> int:
        return len(self.basis)

    def leading(self, size: int) -> Krylov:
        """The basis as it stood after `size` products."""
        return Krylov(self.basis[:size], self.images[:size], self.projected[:size, :size])

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Q v of each vector: [c, N] to [m, c], float64."""
        return (self.basis @ vectors.T).double()

    def image(self, coordinates: Tensor) -> Tensor:
        """A Q^T x of each column: [m, c] to [c, N]."""
        return coordinates.to(self.images).T @ self.images

    def combine(self, coordinates: Tensor) -> Tensor:
        """Q^T x of each column: [m, c] to [c, N]."""
        return coordinates.to(self.basis).T @ self.basis


def lanczos(
    operator: Callable[[Tensor], Tensor],
    start: Tensor,
    size: int,
    parts: Sequence[Tensor] = (),
) -> Krylov:
    """The band-Lanczos basis of `operator` from the rows of `start`.

    Args:
        operator: A, symmetric, [N] to [N]; called once per basis vector.
        start: [c, N]; zero and dependent rows are left out (deflated).
        size: largest number of basis vectors. Fewer come back where the space that the start
            vectors span under A ends before.
        parts: masks [N] of parameter groups that are to be kept apart: every vector that waits is
            split into them, so that the space is closed under each part too. None: no split.
    """
    n = start.shape[1]
    basis = start.new_empty((min(size, n), n))
    images = torch.empty_like(basis)
    tolerance = 100 * torch.finfo(start.dtype).eps

    def split(vector: Tensor, scale: float | None = None) -> list[tuple[Tensor, float]]:
        pieces = [vector * part for part in parts] or [vector]
        return [(p, float(torch.linalg.vector_norm(p)) if scale is None else scale) for p in pieces]

    waiting = deque(piece for row in start for piece in split(row))
    found, largest = 0, 0.0
    while waiting and found < len(basis):
        vector, scale = waiting.popleft()
        for _ in range(2):  # twice is enough (Parlett 1998)
            vector = vector - (basis[:found] @ vector) @ basis[:found]
        norm = float(torch.linalg.vector_norm(vector))
        if norm <= tolerance * scale:
            continue
        basis[found] = vector / norm
        images[found] = operator(basis[found])
        largest = max(largest, float(torch.linalg.vector_norm(images[found])))
        waiting.extend(split(images[found], largest))
        found += 1
    projected = (basis[:found] @ images[:found].T).double()
    return Krylov(basis[:found], images[:found], (projected + projected.T) / 2)
