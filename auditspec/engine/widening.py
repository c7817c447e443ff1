"""Training code run in another precision than it was written for.

A re-run in another precision casts parameters, buffers, and batches. What the code holds itself stays
as it is: class weights in an objective, a constant in a module's attribute. And torch draws other
random numbers in float64 than in float32, which would be taken for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from auditspec.artifacts.remote import RemoteFunction

_DRAWN_LIKE = frozenset({torch.randn_like, torch.rand_like, torch.bernoulli, torch.normal})
"""Functions that draw a tensor in the precision of their first tensor argument."""
_DRAWN = frozenset({torch.randn, torch.rand})
"""Functions that draw a tensor in the precision of their argument `dtype`."""
_DRAWN_INTO = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_})
"""Methods that draw into their first argument, other numbers in each precision."""


class Widening(TorchFunctionMode):
    """Brings together what has two precisions, and draws random numbers as the record did.

    An operation that torch refuses on floating tensors of different precisions is made once more with
    all of them in the widest, or in that of the tensor that it changes in place; what torch allows
    stays as it is.

    Args:
        drawn: the precision in which the recorded run drew its random numbers.
        dtype: the precision of the re-run.
    """

    def __init__(self, drawn: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.drawn = drawn
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWN_LIKE or (func in _DRAWN and kwargs.get("dtype") == self.dtype):
            return self._draw(func, args, kwargs)
        if func in _DRAWN_INTO and args[0].dtype == self.dtype:
            with torch.no_grad():
                args[0].copy_(func(args[0].detach().to(self.drawn), *args[1:], **kwargs))
            return args[0]
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            dtypes = {x.dtype for x in pytree.tree_leaves((args, kwargs)) if _floating(x)}
            if len(dtypes) < 2 or "out" in kwargs:
                raise
            common = args[0].dtype if _in_place(func) else max(dtypes, key=lambda d: d.itemsize)
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda x: x.to(common) if _floating(x) else x, (args, kwargs)
            )
            return func(*args, **kwargs)

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A random tensor of the re-run's precision, with the numbers of the record's."""
        narrow = pytree.tree_map_only(
            Tensor, lambda x: x.to(self.drawn) if x.dtype == self.dtype else x, (args, kwargs)
        )
        args, kwargs = pytree.tree_map_only(
            torch.dtype, lambda kind: self.drawn if kind == self.dtype else kind, narrow
        )
        drawn = func(*args, **kwargs)
        return drawn.to(self.dtype) if drawn.dtype == self.drawn else drawn


def widened(
    objective: Callable[[nn.Module, Any], Tensor], drawn: torch.dtype, dtype: torch.dtype
) -> Callable[[nn.Module, Any], Tensor]:
    """An objective that runs under `Widening`."""
    if isinstance(objective, RemoteFunction):
        return objective.widened(drawn, dtype)

    @wraps(objective)
    def call(model: nn.Module, batch: Any) -> Tensor:
        with Widening(drawn, dtype):
            return objective(model, batch)

    return call


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
