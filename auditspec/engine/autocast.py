"""Autocast as a recorded run had it: around the whole objective, or inside the model's own forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auditspec.record.format import Autocast
from auditspec.record.state import device_of

CASTING: ContextVar[Autocast | None] = ContextVar("casting", default=None)
"""The autocast of the pass that is being computed: a model in another process has to be told."""
LOW = (torch.float16, torch.bfloat16)


@contextmanager
def casting(model: nn.Module, autocast: Autocast | None) -> Iterator[None]:
    """Compute a pass under an autocast; its casts end with it.

    Args:
        model: whose forward is taken where the autocast lies inside it.
        autocast: of the stage; None without one.
    """
    if autocast is None:
        yield
        return
    token = CASTING.set(autocast)
    try:
        with _casting(model, autocast):
            yield
    finally:
        CASTING.reset(token)


@contextmanager
def _casting(model: nn.Module, autocast: Autocast) -> Iterator[None]:
    kind, dtype = device_of(model).type, getattr(torch, autocast.dtype)
    entered = partial(torch.autocast, kind, dtype, cache_enabled=autocast.cache)
    if autocast.around == "objective" and not autocast.inputs:
        with entered():
            yield
        return

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    own, forward = "forward" in vars(model), model.forward

    def low_precision(*args: Any, **kwargs: Any) -> Any:
        if autocast.inputs:
            args, kwargs = pytree.tree_map_only(Tensor, cast, (args, kwargs))
        with entered():
            outputs = forward(*args, **kwargs)
        return pytree.tree_map_only(Tensor, _to_float32, outputs)

    model.forward = low_precision
    try:
        with entered() if autocast.around == "objective" else nullcontext():
            yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in LOW else tensor
