"""Answers must have the form of what they answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from auditspec.errors import EstimationError


@dataclass
class checked:  # noqa: N801 - a context manager
    """Turns what goes wrong with a malformed answer into one error that names the function."""

    what: str
    _wrong: tuple[type[Exception], ...] = field(
        default=(KeyError, TypeError, ValueError, IndexError, AttributeError), init=False
    )

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, self._wrong):
            raise EstimationError(
                f"the audited code's process gave an answer about {self.what} that does not hold together: {error}",
                "code that interferes with its own process cannot be audited",
            ) from None


def like(value: Any, tensor: Tensor) -> Tensor | None:
    """A derivative by a tensor has the tensor's form, strides too.

    Raises:
        ValueError: if it has not.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.shape != tensor.shape or value.dtype != tensor.dtype:
        raise ValueError("a derivative of another form than what it is taken by")
    moved = value.to(tensor.device)
    if moved.stride() == tensor.stride():
        return moved
    return torch.empty_like(tensor, requires_grad=False).copy_(moved)


def present(value: Tensor | None) -> Tensor:
    """A tensor that must be there.

    Raises:
        ValueError: if it is not.
    """
    if value is None:
        raise ValueError("a buffer is missing")
    return value
