"""The tensor operations of one computation, written down once and run again on other inputs.

A batched gradient of a small model is a few dozen short operations; most of its time is spent in the
Python of the model, in vmap, and in the autograd engine, which do the same at every step. A `Tape`
keeps what is left below all of them: the calls of torch's own operators, as one straight Python
function. It needs no compiler, and writing one costs a few times the computation itself.

What depends on the *values* of tensors cannot be written down. An operator whose result is no
tensor, or whose shape depends on values (`item`, `nonzero`, a mask as an index), or a call that
takes values out of torch (`tolist`, `numpy`) is refused. Random operators draw again each time.

Derivatives written out repeat themselves: masks are computed twice, zeros made anew, transposes undone,
numbers multiplied by 1. A tape leaves out what gives the same numbers without it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from auditspec.record.uncompiled import uncompiled

Outputs = list[Tensor | None]

aten = torch.ops.aten

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
        self, run: Callable[..., list[Tensor | None]], operations: int, elements: int
    ) -> None:
        self._run = run
        self.operations = operations
        """Calls of operators, as the computation made them."""
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
        with uncompiled(), values, writer:
            outputs = function(*inputs)
        results = [None if o is None else writer.slot(o) for o in outputs]
        operations = len(writer.calls)
        calls = _simplified(writer, {r for r in results if r is not None})
        run = _function(calls, len(inputs), results, writer.constants)
        return outputs, cls(run, operations, writer.elements)

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        """The outputs for other inputs, of the shapes of the first."""
        with torch.no_grad():
            return self._run(*inputs)


@dataclass(frozen=True)
class _Slot:
    """A tensor of the computation."""

    number: int
    form: Hashable
    """Type, shape, and strides."""

    def __repr__(self) -> str:
        return f"v{self.number}"


@dataclass
class _Call:
    """One call of an operator."""

    function: Any
    args: Any
    kwargs: Any
    results: tuple[_Slot | None, ...]
    several: bool
    """Whether it gives a list or tuple."""

    @property
    def pure(self) -> bool:
        """Whether calling it does nothing but give its results, the same ones each time."""
        drawing = torch.Tag.nondeterministic_seeded in self.function.tags
        return not drawing and not self.function._schema.is_mutable


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
        self.calls: list[_Call] = []
        self.constants: dict[_Slot, Tensor] = {}
        self.elements = 0
        self._slots: dict[int, _Slot] = {}
        self._held: list[Any] = list(inputs)  # an id is a name only while its tensor lives
        self._made = 0
        for x in inputs:
            self._slots[id(x)] = self._new(x)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: keeping torch's compiler out would import it, two seconds long."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(tag in func.tags for tag in _DEPENDS_ON_VALUES):
            raise NotTapedError(f"the result of {func} depends on values")
        result = func(*args, **kwargs)
        several = isinstance(result, tuple | list)
        leaves = list(result) if several else [result]
        if not all(x is None or isinstance(x, Tensor) for x in leaves):
            raise NotTapedError(f"the result of {func} is no tensor")
        self._held += leaves
        if isinstance(result, Tensor) and (same := self._alias(func, args, result)) is not None:
            self._slots[id(result)] = self.slot(same)
            return result
        self.elements += sum(x.numel() for x in leaves if x is not None)
        written = self._written(args), self._written(kwargs)
        results = tuple(None if x is None else self._new(x) for x in leaves)
        self._slots.update({id(x): r for x, r in zip(leaves, results, strict=True) if r})
        self.calls.append(_Call(func, *written, results, several))
        return result

    def slot(self, x: Tensor) -> _Slot:
        """Which tensor of the computation it is; one of unknown origin is a constant."""
        if id(x) not in self._slots:
            self._held.append(x)
            self._slots[id(x)] = self._new(x)
            self.constants[self._slots[id(x)]] = x
        return self._slots[id(x)]

    def _new(self, x: Tensor) -> _Slot:
        self._made += 1
        return _Slot(self._made - 1, (x.dtype, x.shape, x.stride()))

    def _written(self, value: Any) -> Any:
        """Arguments with slots in place of tensors."""
        if isinstance(value, Tensor):
            return self.slot(value)
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            return type(value)(self._written(x) for x in value)
        if isinstance(value, dict):
            return {key: self._written(x) for key, x in value.items()}
        return value

    @staticmethod
    def _alias(func: Any, args: Any, result: Tensor) -> Tensor | None:
        """The argument that the result is another handle on: a view of the same shape."""
        first = args[0] if args else None
        if (
            isinstance(first, Tensor)
            and not func._schema.is_mutable
            and result.layout == first.layout == torch.strided
            and result.numel() > 0
            and result.dtype == first.dtype
            and result.shape == first.shape
            and result.stride() == first.stride()
            and result.data_ptr() == first.data_ptr()
        ):
            return first
        return None


def _simplified(writer: _Writer, results: set[_Slot]) -> list[_Call]:
    """The calls but those that give what another slot holds, or what nothing uses.

    Outputs stay tensors of their own. Computations with operations in place stay as they are.
    """
    if any(call.function._schema.is_mutable for call in writer.calls):
        return writer.calls
    same: dict[_Slot, _Slot] = {}
    seen: dict[Hashable, _Call] = {}
    origin: dict[_Slot, _Call] = {}
    calls: list[_Call] = []
    for call in writer.calls:
        call.args, call.kwargs = _replaced(call.args, same), _replaced(call.kwargs, same)
        if call.pure and not results & {*call.results}:
            other = _undone(call, origin)
            if other is not None:
                same |= {r: other for r in call.results if r is not None}
                continue
            earlier = seen.setdefault((call.function, repr(call.args), repr(call.kwargs)), call)
            if earlier is not call:
                same |= {
                    r: e for r, e in zip(call.results, earlier.results, strict=True) if r and e
                }
                continue
            if not _slots_in((call.args, call.kwargs)) and not call.several:
                writer.constants |= {
                    r: call.function(*call.args, **call.kwargs) for r in call.results if r
                }
                continue
        origin |= {r: call for r in call.results if r is not None}
        calls.append(call)
    used = set(results)
    for call in reversed(calls):
        if not call.pure or used & {*call.results}:
            used |= _slots_in((call.args, call.kwargs))
    return [call for call in calls if not call.pure or used & {*call.results}]


def _undone(call: _Call, origin: dict[_Slot, _Call]) -> _Slot | None:
    """What a call gives back unchanged: x of x * 1, and of two equal transposes."""
    if call.function is aten.mul.Scalar and call.args[1] == 1:
        x, (result,) = call.args[0], call.results
        return x if result is not None and x.form == result.form else None
    if call.function is aten.transpose.int:
        before = origin.get(call.args[0])
        if before is not None and before.function is call.function:
            return before.args[0] if before.args[1:] == call.args[1:] else None
    return None


def _replaced(value: Any, same: dict[_Slot, _Slot]) -> Any:
    if isinstance(value, _Slot):
        return same.get(value, value)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(_replaced(x, same) for x in value)
    if isinstance(value, dict):
        return {key: _replaced(x, same) for key, x in value.items()}
    return value


def _slots_in(value: Any) -> set[_Slot]:
    if isinstance(value, _Slot):
        return {value}
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return {slot for x in value for slot in _slots_in(x)}
    return set()


def _function(
    calls: list[_Call],
    inputs: int,
    results: list[_Slot | None],
    constants: dict[_Slot, Tensor],
) -> Callable[..., Outputs]:
    """The calls as a Python function of the inputs v0, v1, …; a tensor is let go after its last use."""
    names: dict[str, Any] = {repr(slot): x for slot, x in constants.items()}

    def text(value: Any) -> str:
        if value is None or isinstance(value, _Slot | bool | int):
            return repr(value)
        if type(value) in (list, tuple):
            inner = "".join(f"{text(x)}, " for x in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        names[f"k{len(names)}"] = value
        return f"k{len(names) - 1}"

    later, lines = {r for r in results if r is not None} | {*constants}, []
    lines.append(f"return {text(results)}")
    for call in reversed(calls):
        given = _slots_in((call.args, call.kwargs))
        done = (given | {r for r in call.results if r is not None}) - later
        if done:
            lines.append(f"del {', '.join(map(repr, done))}")
        later |= given
        arguments = [text(x) for x in call.args]
        arguments += [f"{key}={text(x)}" for key, x in call.kwargs.items()]
        targets = (
            "".join(f"{r or '_'}, " for r in call.results) if call.several else call.results[0]
        )
        lines.append(f"{targets or '_'} = {text(call.function)}({', '.join(arguments)})")
    parameters = ", ".join(f"v{i}" for i in range(inputs))
    body = "\n    ".join(reversed(lines))
    exec(f"def run({parameters}):\n    {body}", names)  # noqa: S102  (its text is made above)
    run: Callable[..., Outputs] = names["run"]
    return run
