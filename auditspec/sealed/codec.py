"""Values as JSON with their tensors beside it: what the audit and the audited code's process tell each other.

Every value becomes a list of its kind and its content. What has no kind here stays where it is, and goes by a
number (`Opaque`). Reading builds plain values only, and takes nothing for granted: a value that does not hold
together is a `ValueError`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = frozenset(
    [
        "float",
        "tensor",
        "strided",
        "array",
        "number",
        "list",
        "tuple",
        "size",
        "dtype",
        "device",
        "dict",
        "ordered",
        "bytes",
        "named",
        "mapping",
        "opaque",
        "many",
    ]
)
NUMBERS = 2**24
"""What one answer may leave in the process: it goes by the question's number times this, and on from there."""
MOST_DEPTH, MOST_VALUES, MOST_NUMBERS = 60, 5_000_000, 2**32
SPARSEST = 8
"""A tensor that lies scattered over more memory than that many times its own goes over without the gaps."""
DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in vars(torch).values()
    if isinstance(kind, torch.dtype) and not str(kind).startswith("torch.q")
}


class Opaque:
    """Something that only the other process can look into, by its number there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __deepcopy__(self, memo: Any) -> Opaque:
        return self  # its owner hands out a copy at each use


class OpaqueMapping(Opaque, Mapping[Any, Any]):
    """A mapping of a class that only the other process knows, with its items."""

    def __init__(self, number: int, items: Mapping[Any, Any]) -> None:
        super().__init__(number)
        self._items = items

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Many(list[Any]):
    """Tensors, or None, that go over together: the same ones time and again, as a model's parameters do."""


@dataclass
class Writer:
    """Turns values into what JSON holds; tensors are gathered in `tensors`.

    Args:
        special: gives kind and content of a value that it knows, None for any other; asked first.
        keep: gives the number of a value that stays here; None refuses such values.
    """

    special: Callable[[Any], list[Any] | None] = lambda value: None
    keep: Callable[[Any], int] | None = None
    tensors: list[Tensor] = field(default_factory=list)
    blocks: list[list[Tensor]] = field(default_factory=list)
    """What is in each `Many`."""
    _written: dict[int, tuple[Tensor, list[Any]]] = field(default_factory=dict)

    def value(self, value: Any) -> Any:
        """One value.

        Raises:
            TypeError: for one that must stay here and may not.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", repr(value)]
        if type(value) is Many:
            self.blocks.append([t.detach() for t in value if t is not None])
            return ["many", len(self.blocks) - 1, "".join("0" if t is None else "1" for t in value)]
        if (known := self.special(value)) is not None:
            return known
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            kind = "array" if isinstance(value, np.ndarray) else "number"
            return [kind, self._tensor(torch.from_numpy(np.array(value)))]
        if type(value) is list:
            return ["list", *map(self.value, value)]
        if type(value) is tuple:
            return ["tuple", *map(self.value, value)]
        if isinstance(value, torch.Size):
            return ["size", *value]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            return ["device", str(value)]
        if type(value) in (dict, OrderedDict):
            pairs = [[self.value(k), self.value(v)] for k, v in value.items()]
            return ["dict" if type(value) is dict else "ordered", *pairs]
        if type(value) is bytes:
            return ["bytes", value.hex()]
        return self._other(value)

    def _other(self, value: Any) -> list[Any]:
        if isinstance(value, Opaque):
            return ["opaque", value.number]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = list(value._fields)
            number = self._number(type(value)) if self.keep else getattr(value, "_number", -1)
            return ["named", number, type(value).__name__, fields, *map(self.value, value)]
        if isinstance(value, Mapping):
            pairs = [[self.value(k), self.value(v)] for k, v in value.items()]
            return ["mapping", self._number(value), *pairs]
        return ["opaque", self._number(value)]

    def _number(self, value: Any) -> int:
        if self.keep is None:
            raise TypeError(f"a {type(value).__name__} cannot be handed to the audited code")
        return self.keep(value)

    def _tensor(self, tensor: Tensor) -> list[Any]:
        """A tensor, the same one once; with its strides where it has others than usual, since kernels round by them.

        Raises:
            TypeError: for a sparse or quantized one.
        """
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError("a sparse, quantized, or empty-handed tensor cannot be handed over")
        if id(tensor) not in self._written:
            dense = tensor.detach()
            node: list[Any] = ["tensor", len(self.tensors)]
            if not tensor.is_contiguous() and (memory := _memory(dense)) is not None:
                node = ["strided", len(self.tensors), [*tensor.shape], [*tensor.stride()]]
                dense = memory
            self.tensors.append(dense)
            self._written[id(tensor)] = tensor, node
        return self._written[id(tensor)][1]


def _memory(tensor: Tensor) -> Tensor | None:
    """What a tensor lies in, from its first number to its last, [n]; None where that is much more, or overlaps."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    once = tensor[tuple(slice(0, 1 if s == 0 else None) for s in tensor.stride())]
    if not tensor.numel() or extent > SPARSEST * once.numel():
        return None
    memory = tensor.new_zeros(extent)
    try:
        memory.as_strided(once.shape, once.stride()).copy_(once)
    except RuntimeError:  # numbers that lie in several places of it
        return None
    return memory


@dataclass
class Reader:
    """Makes values of what `Writer` wrote.

    Args:
        tensors: the message's.
        blocks: what is in each `Many`.
        special: makes the value of a kind that is not plain, from its content.
        kept: gives what stayed on this side, by its number; None makes `Opaque`s.
    """

    tensors: Sequence[Tensor]
    blocks: Sequence[Sequence[Tensor]] = ()
    special: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    kept: Callable[[int], Any] | None = None
    _values: int = 0
    _strided_at: dict[int, Tensor] = field(default_factory=dict)

    def value(self, node: Any, depth: int = 0) -> Any:
        """One value.

        Raises:
            ValueError: if it does not hold together.
        """
        self._values += 1
        if depth > MOST_DEPTH or self._values > MOST_VALUES:
            raise ValueError("a value is nested too deeply, or holds too many others")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise ValueError("a value has no kind")
        kind, *content = node
        if kind in self.special:
            return self.special[kind](*content)
        if kind not in KINDS:
            raise ValueError(f"a value of unknown kind {kind[:40]!r}")
        try:
            return getattr(self, f"_{kind}")(content, depth + 1)
        except (
            TypeError,
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise ValueError(f"a value of kind {kind!r} does not hold together: {error}") from None

    def _each(self, content: Any, depth: int) -> list[Any]:
        return [self.value(item, depth) for item in content]

    def _pairs(self, content: Any, depth: int) -> Iterator[tuple[Any, Any]]:
        for key, item in content:
            yield self.value(key, depth), self.value(item, depth)

    def _float(self, content: Any, depth: int) -> float:
        return float(content[0])

    def _tensor(self, content: Any, depth: int) -> Tensor:
        (place,) = content
        if type(place) is not int or place < 0:
            raise ValueError("a tensor has no place")
        return self.tensors[place]

    def _strided(self, content: Any, depth: int) -> Tensor:
        place, shape, stride = content
        if place in self._strided_at:
            return self._strided_at[place]
        memory = self._tensor([place], depth)
        if math.prod(shape) > MOST_NUMBERS or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError("a tensor of impossible shape")
        self._strided_at[place] = memory.as_strided(shape, stride)
        return self._strided_at[place]

    def _many(self, content: Any, depth: int) -> list[Tensor | None]:
        place, mask = content
        if type(place) is not int or place < 0:
            raise ValueError("tensors have no place")
        block = self.blocks[place]
        if mask.count("1") != len(block):
            raise ValueError("tensors are missing")
        rest = iter(block)
        return [next(rest) if there == "1" else None for there in mask]

    def _array(self, content: Any, depth: int) -> Any:
        tensor: Tensor = self.value(content[0], depth)
        return tensor.numpy()

    def _number(self, content: Any, depth: int) -> Any:
        tensor: Tensor = self.value(content[0], depth)
        return tensor.numpy()[()]

    def _list(self, content: Any, depth: int) -> list[Any]:
        return self._each(content, depth)

    def _tuple(self, content: Any, depth: int) -> tuple[Any, ...]:
        return tuple(self._each(content, depth))

    def _size(self, content: Any, depth: int) -> torch.Size:
        return torch.Size(content)

    def _dtype(self, content: Any, depth: int) -> torch.dtype:
        return DTYPES[content[0]]

    def _device(self, content: Any, depth: int) -> torch.device:
        return torch.device(content[0])

    def _dict(self, content: Any, depth: int) -> dict[Any, Any]:
        return dict(self._pairs(content, depth))

    def _ordered(self, content: Any, depth: int) -> OrderedDict[Any, Any]:
        return OrderedDict(self._pairs(content, depth))

    def _bytes(self, content: Any, depth: int) -> bytes:
        return bytes.fromhex(content[0])

    def _named(self, content: Any, depth: int) -> Any:
        number, name, fields, *items = content
        values = self._each(items, depth)
        if self.kept is not None:
            return self.kept(number)(*values)
        kind: Any = namedtuple(str(name), list(map(str, fields)))  # type: ignore[misc]
        kind._number = int(number)  # type: ignore[attr-defined]
        return kind(*values)

    def _mapping(self, content: Any, depth: int) -> Any:
        number, *pairs = content
        if self.kept is not None:
            return self.kept(number)
        return OpaqueMapping(int(number), dict(self._pairs(pairs, depth)))

    def _opaque(self, content: Any, depth: int) -> Any:
        return self.kept(content[0]) if self.kept is not None else Opaque(int(content[0]))
