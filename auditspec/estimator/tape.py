"""The tensor operations of one computation, written down once and run again on other inputs.

A batched gradient of a small model is a few dozen short operations; most of its time is spent in the
Python of the model, in vmap, and in the autograd engine, which do the same at every step. A `Tape`
keeps what is left below all of them: the calls of torch's own operators, as a `torch.fx` graph. It
needs no compiler, and writing one costs a few times the computation itself.

What depends on the *values* of tensors cannot be written down. An operator whose result is no
tensor, or whose shape depends on values (`item`, `nonzero`, a mask as an index), or a call that
takes values out of torch (`tolist`, `numpy`) is refused. Random operators draw again each time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Outputs = list[Tensor | None]

_TAKES_VALUES = frozenset(
    {
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.data_ptr,
    }
)
_DEPENDS_ON_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class NotTapedError(Exception):
    """A computation that depends on values; the message names the operation."""


class Tape:
    """A computation that can be run again on inputs of the same shapes.

    Built by `record`; a call gives the outputs for other inputs. Inputs that the computation changes
    in place are changed again.
    """

    def __init__(
        self, graph: fx.Graph, constants: dict[str, Tensor], operations: int, elements: int
    ) -> None:
        self._run = fx.GraphModule(constants, graph)
        self.operations = operations
        """Calls of operators."""
        self.elements = elements
        """Numbers that they write, together."""

    @classmethod
    def record(
        cls, function: Callable[..., Outputs], inputs: Sequence[Tensor]
    ) -> tuple[Outputs, Tape]:
        """Compute once, writing every operation down.

        Args:
            function: from tensors to a list of tensors or None. Other tensors that it reaches are
                constants: held by reference, so that their later values count.
            inputs: its arguments.

        Raises:
            NotTapedError: if the computation depends on values.
        """
        writer, values = _Writer(inputs), _NoValues()
        with values, writer:
            outputs = function(*inputs)
        writer.graph.output(tuple(writer.node(o) if o is not None else None for o in outputs))
        return outputs, cls(writer.graph, writer.constants, writer.operations, writer.elements)

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        """The outputs for other inputs, of the shapes of the first."""
        with torch.no_grad():
            return list(self._run(*inputs))


def form(leaf: Any) -> Hashable:
    """What a tape takes for granted of a batch's part: a tensor's form, another value itself."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype
    hash(leaf)  # a TypeError here sends the arms the ordinary way
    return "value", type(leaf), leaf


class _NoValues(TorchFunctionMode):
    """Refuses what takes values out of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TAKES_VALUES:
            raise NotTapedError(f"Tensor.{func.__name__} takes values out of torch")
        return func(*args, **(kwargs or {}))


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operators that are called while it is active."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.operations = self.elements = 0
        self._nodes = {id(x): self.graph.placeholder(f"x{i}") for i, x in enumerate(inputs)}
        self._held: list[Any] = list(inputs)  # an id is a name only while its tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(tag in func.tags for tag in _DEPENDS_ON_VALUES):
            raise NotTapedError(f"the result of {func} depends on values")
        found = func(*args, **kwargs)
        leaves = list(found) if isinstance(found, tuple | list) else [found]
        if not all(x is None or isinstance(x, Tensor) for x in leaves):
            raise NotTapedError(f"the result of {func} is no tensor")
        self._held += leaves
        if isinstance(found, Tensor) and (same := self._alias(func, args, found)) is not None:
            self._nodes[id(found)] = self.node(same)
            return found
        self.operations += 1
        self.elements += sum(x.numel() for x in leaves if x is not None)
        node = self.graph.call_function(func, self._written(args), self._written(kwargs))
        if isinstance(found, Tensor):
            self._nodes[id(found)] = node
        elif found is not None:
            for i, x in enumerate(found):
                if isinstance(x, Tensor):
                    self._nodes[id(x)] = self.graph.call_function(operator.getitem, (node, i))
        return found

    def node(self, x: Tensor) -> fx.Node:
        """Where a tensor stands in the graph; one of unknown origin is a constant."""
        if id(x) not in self._nodes:
            name = f"constant{len(self.constants)}"
            self._held.append(x)
            self.constants[name] = x
            self._nodes[id(x)] = self.graph.create_node("get_attr", name)
        return self._nodes[id(x)]

    def _written(self, value: Any) -> Any:
        """Arguments with nodes in place of tensors."""
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return type(value)(self._written(x) for x in value)
        if isinstance(value, dict):
            return {key: self._written(x) for key, x in value.items()}
        return value

    @staticmethod
    def _alias(func: Any, args: Any, found: Tensor) -> Tensor | None:
        """The argument that the result is another handle on: a view of the same shape."""
        first = args[0] if args else None
        if (
            isinstance(first, Tensor)
            and not func._schema.is_mutable
            and found.layout == first.layout == torch.strided
            and found.numel() > 0
            and found.dtype == first.dtype
            and found.shape == first.shape
            and found.stride() == first.stride()
            and found.data_ptr() == first.data_ptr()
        ):
            return first
        return None
