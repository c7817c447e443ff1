"""Tensors and numbers that a model holds outside its parameters and buffers.

A frozen copy in a list, a plain attribute, a hook's closure, or a global variable is no part of a state:
no re-run could give it other values. What can be found from the model and from the function that
changed it is found here, in attributes, containers, classes, closures, and the global variables that
the function's own code names. What only other code holds is not.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction

MOST = 100_000
"""Objects that are looked at."""
_SKIPPED = (type, types.ModuleType, str, bytes, int, Dataset, torch.device, torch.dtype)


def unregistered(model: nn.Module, function: Callable[..., Any]) -> dict[str, Tensor]:
    """Floating numbers and tensors by where they are held, copied to the CPU.

    Memory that a parameter or buffer shares is left out.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    remote = next(
        (f for f in (inner, *getattr(function, "args", ())) if isinstance(f, RemoteFunction)), None
    )
    if remote is not None:
        return remote.unregistered(model)
    registered = {_memory(t) for t in (*model.parameters(), *model.buffers())}
    values: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}
    waiting: list[tuple[str, Any]] = [("model", model), *_of_function("", function)]
    while waiting and len(seen) < MOST:
        path, value = waiting.pop()
        if isinstance(value, float):
            values[path] = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, _SKIPPED) or value is None or id(value) in seen:
            continue
        else:
            seen[id(value)] = value  # held: a freed object's id would be given again
            if isinstance(value, Tensor):
                if _memory(value) not in registered:
                    values[path] = value.detach().cpu().clone()
            elif isinstance(value, np.ndarray):
                if value.dtype.kind in "fiub":
                    values[path] = torch.tensor(value)
            else:
                waiting += _inside(path, value)
    return values


def _memory(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}[{key!r}]" if isinstance(key, str | int) else f"{path}[…]", item
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield f"{path}[{place}]", item
    elif isinstance(value, functools.partial | types.MethodType | types.FunctionType):
        yield from _of_function(path, value, named=False)
    else:
        members = dict(getattr(value, "__dict__", {}))
        if isinstance(value, nn.Module):
            for kind in type(value).__mro__:
                if not kind.__module__.startswith("torch.") and kind is not object:
                    data = {k: v for k, v in vars(kind).items() if _is_data(v)}
                    yield from ((f"{kind.__name__}.{k}", v) for k, v in data.items())
            for part in ("_parameters", "_buffers", "_modules"):
                yield from ((f"{path}.{k}", v) for k, v in members.pop(part, {}).items())
        yield from ((f"{path}.{k}", v) for k, v in members.items())


def _is_data(value: Any) -> bool:
    return isinstance(value, Tensor | nn.Module | list | dict | tuple | float | np.ndarray)


def _of_function(path: str, function: Any, *, named: bool = True) -> Iterator[tuple[str, Any]]:
    """What a function holds; with `named`, also the global variables that its code names."""
    place = path or getattr(function, "__name__", "function")
    if isinstance(function, functools.partial):
        for part in (function.func, *function.args, *function.keywords.values()):
            if isinstance(part, types.FunctionType):
                yield from _of_function("", part, named=named)
            else:
                yield f"{place}(…)", part
        return
    if isinstance(function, types.MethodType):
        yield place, function.__self__
        function = function.__func__
    if not isinstance(function, types.FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            yield f"{place}.{name}", cell.cell_contents
    for place_, value in enumerate(function.__defaults__ or ()):
        yield f"{place}({place_})", value
    for name, value in function.__dict__.items():
        yield f"{place}.{name}", value
    if named:
        yield from _globals(function)


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Global variables of a function, and of the functions of its module that it calls."""
    waiting, called = [function], {function}
    while waiting:
        here = waiting.pop()
        for name in sorted(_names(here.__code__)):
            value = here.__globals__.get(name)
            if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
                waiting += [value] if value not in called else []
                called.add(value)
            elif _is_data(value):
                yield f"{function.__module__}.{name}", value


def _names(code: types.CodeType) -> set[str]:
    nested = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, nested))
