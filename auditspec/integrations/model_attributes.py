"""What a library changes about a model besides its values: patched methods, hooks, dropout, configurations.

A trainer patches the forward of the model that it is given, switches its dropout off, sets tokens in its
configuration. Two trainers around one model then depend on which was built first. Here such changes are
told apart from the model, taken back, and put on for as long as one trainer computes.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

_TENSORS = ("_parameters", "_buffers", "_modules")
_MODE = "training"
_ABSENT: Any = object()


@dataclass(frozen=True)
class _Item:
    """An entry of a mapping that was changed."""

    owner: MutableMapping[Any, Any]
    key: Any
    before: Any
    after: Any


class Attributes:
    """The attributes of a model as they stand: of its modules, their hooks, and their configurations.

    Parameters, buffers, and submodules are left out.

    Args:
        model: whose attributes are noted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._noted = [(owner, dict(owner)) for owner in _owners(model)]

    def changes(self) -> Changes:
        """What was changed since; the modes of the modules (train or eval) are left out."""
        items = []
        for owner, before in self._noted:
            for key in {**before, **owner}:
                old, new = before.get(key, _ABSENT), owner.get(key, _ABSENT)
                if key not in (*_TENSORS, _MODE) and old is not new:
                    items.append(_Item(owner, key, old, new))
        return Changes(tuple(items))

    def restore(self) -> None:
        """Take back every change since, the modes included."""
        for owner, before in self._noted:
            for key in {**before, **owner}:
                if key not in _TENSORS:
                    _put(owner, key, before.get(key, _ABSENT))


@dataclass(frozen=True)
class Changes:
    """Changes of a model's attributes that can be put on and off."""

    _items: tuple[_Item, ...]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Put them on inside the block; what stood there comes back afterwards."""
        present = [(item, item.owner.get(item.key, _ABSENT)) for item in self._items]
        try:
            for item in self._items:
                _put(item.owner, item.key, item.after)
            yield
        finally:
            for item, value in present:
                _put(item.owner, item.key, value)


def _put(owner: MutableMapping[Any, Any], key: Any, value: Any) -> None:
    if value is _ABSENT:
        owner.pop(key, None)
    elif owner.get(key, _ABSENT) is not value:
        owner[key] = value


def _owners(model: nn.Module) -> Iterator[MutableMapping[Any, Any]]:
    """The dictionaries that hold the attributes: of modules, of their configurations, and those therein."""
    waiting: list[Any] = [*model.modules()]
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        owner = thing if isinstance(thing, dict) else vars(thing)
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        yield owner
        inside = [value for key, value in owner.items() if key not in _TENSORS]
        waiting += [value for value in inside if isinstance(value, dict) or _is_config(value)]


def _is_config(value: Any) -> bool:
    """Whether a value is a configuration of transformers, a plain object that the modules share."""
    return hasattr(value, "to_diff_dict") and hasattr(value, "__dict__")
