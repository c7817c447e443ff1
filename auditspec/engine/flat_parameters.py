"""Several parameters in one vector.

The optimizers' updates are elementwise: on one vector of all parameters they take a few long
operations in place of many short ones, whose calls would cost more than their arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn


class Layout:
    """Where each parameter stands in a vector of P numbers.

    Args:
        parameters: in the order of the vector, at least one; the first one's precision and device
            are the vector's.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.names = tuple(parameters)
        self.sizes = [p.numel() for p in parameters.values()]
        self.shapes = [p.shape for p in parameters.values()]
        self.ends = [0, *itertools.accumulate(self.sizes)]
        self._like = next(iter(parameters.values())).detach()

    def vector(self, tensors: Mapping[str, Tensor | None]) -> Tensor:
        """[P] of one tensor a parameter, detached; zeros for a missing one."""
        with torch.no_grad():
            parts = [
                self._zeros(size, tensors) if (t := tensors.get(n)) is None else t.reshape(-1)
                for n, size in zip(self.names, self.sizes, strict=True)
            ]
            return torch.cat(parts).to(self._like)

    def rows(self, rows: Mapping[str, Tensor], count: int) -> Tensor:
        """[count, P] of [count, *shape] a parameter; zeros for a missing one."""
        parts = [
            rows[n].reshape(count, size) if n in rows else self._like.new_zeros(count, size)
            for n, size in zip(self.names, self.sizes, strict=True)
        ]
        return torch.cat(parts, 1)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parameters' parts of [P], in their shapes and in the layout's order."""
        parts = vector.split_with_sizes(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """[n, *shape] per parameter, of [n, P]."""
        parts = rows.split_with_sizes(self.sizes, 1)
        return {
            n: part.reshape(-1, *shape)
            for n, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def _zeros(self, size: int, tensors: Mapping[str, Tensor | None]) -> Tensor:
        devices = (t.device for t in tensors.values() if t is not None)
        return self._like.new_zeros(size, device=next(devices, self._like.device))


class FlatParameters:
    """One vector in which parameters of a model live while this context is open.

    Writing them all is one operation then. Afterwards they have their own memory again, and in it
    what they had before.

    Args:
        parameters: in the order of the vector, at least one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.layout = Layout(parameters)
        self.theta = self.layout.vector(parameters)
        """[P], to be written in place."""
        self._parameters = [*parameters.values()]
        self._own = [p.data for p in self._parameters]

    def __enter__(self) -> FlatParameters:
        views = self.layout.views(self.theta)
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.data = view
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for parameter, own in zip(self._parameters, self._own, strict=True):
            parameter.data = own


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One vector of several, or rows of rows, along the last dimension."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], -1)
