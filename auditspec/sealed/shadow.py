"""Models of the audited code, as the audit sees them: their tensors under their names, and nothing that computes.

A description lists modules, each with its own parameters, buffers, and parts; shared ones once. Tensors go by
numbers that stay with them as long as they live, so that what survives a change of the model is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MOST_MODULES = 100_000
STATE = ("parameters", "buffers")
"""What of a model goes over with every question about it."""


def tensors_of(model: nn.Module) -> tuple[list[nn.Parameter], list[Tensor]]:
    """A model's parameters and its buffers, each once, in torch's order; in one walk, since it is taken at every question."""
    parameters: dict[int, nn.Parameter] = {}
    buffers: dict[int, Tensor] = {}
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        parameters.update((id(p), p) for p in module._parameters.values() if p is not None)
        buffers.update((id(b), b) for b in module._buffers.values() if b is not None)
        waiting += [part for part in reversed(module._modules.values()) if part is not None]
    return [*parameters.values()], [*buffers.values()]


class Shadow(nn.Module):
    """The outermost module of a model in another process, which goes by a number there."""

    number: int
    tensors: tuple[list[nn.Parameter], bool] | None = None
    """Its parameters, and whether it has buffers; None where they are to be looked up."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """A shadow computes nothing.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a model of the audited code is called by that code only")


class _Part(nn.Module):
    """A module below the outermost one."""


class _Norm(_BatchNorm):
    """A batch normalization, which some estimators treat with care."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


# --- where the model is ------------------------------------------------------------------------------


class Numbers:
    """Gives tensors numbers that stay with them, and keeps them alive."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._tensors: list[Tensor] = []
        self._next = itertools.count()

    def of(self, tensor: Tensor) -> int:
        """The tensor's number."""
        if id(tensor) not in self._numbers:
            self._numbers[id(tensor)] = next(self._next)
            self._tensors.append(tensor)
        return self._numbers[id(tensor)]


def described(model: nn.Module, numbers: Numbers) -> tuple[list[Any], list[Tensor]]:
    """A model's modules, parts after what they are part of, and its tensors in the order of their first places."""
    places: dict[int, int] = {}
    nodes: list[dict[str, Any]] = []
    tensors: dict[int, Tensor] = {}

    def enter(module: nn.Module) -> int:
        if id(module) in places:
            return places[id(module)]
        place = places[id(module)] = len(nodes)
        node: dict[str, Any] = {"kind": "norm" if isinstance(module, _BatchNorm) else "module"}
        nodes.append(node)
        node |= {"facts": _facts(module), "training": module.training}
        node["parameters"] = [
            [name, numbers.of(p), p.requires_grad]
            for name, p in module._parameters.items()
            if p is not None
        ]
        node["buffers"] = [
            [name, numbers.of(b), name not in module._non_persistent_buffers_set]
            for name, b in module._buffers.items()
            if b is not None
        ]
        for group in (module._parameters, module._buffers):
            tensors.update({numbers.of(t): t for t in group.values() if t is not None})
        node["parts"] = [
            [name, enter(part)] for name, part in module._modules.items() if part is not None
        ]
        return place

    enter(model)
    return [nodes, [*tensors]], [*tensors.values()]


def _facts(module: nn.Module) -> dict[str, Any]:
    """What checks ask of a layer beside its tensors."""
    facts: dict[str, Any] = {}
    if isinstance(module, _BatchNorm):
        facts["momentum"] = module.momentum
    for name in ("scaling", "fan_in_fan_out"):
        value = vars(module).get(name)
        if isinstance(value, Mapping):
            value = {str(k): v for k, v in value.items() if isinstance(v, bool | int | float)}
        if isinstance(value, bool | int | float | dict):
            facts[name] = value
    return facts


# --- where it is seen --------------------------------------------------------------------------------


def shadow_of(
    number: int, description: Any, values: Sequence[Tensor], known: Mapping[int, Tensor]
) -> tuple[Shadow, dict[int, Tensor]]:
    """The shadow of a described model.

    Args:
        number: of the model, where it is.
        description: by `described`.
        values: its tensors.
        known: tensors of an earlier shadow of it by their numbers: they are taken on.

    Returns:
        The shadow, and its tensors by number.

    Raises:
        ValueError: if the description does not hold together.
    """
    nodes, order = description
    if not nodes or len(nodes) > MOST_MODULES or len(order) != len(values):
        raise ValueError("a model's description does not hold together")
    value_of = dict(zip(map(int, order), values, strict=True))
    tensors: dict[int, Any] = {}
    made: list[nn.Module] = []
    for place, node in enumerate(nodes):
        module: nn.Module = (
            Shadow() if not place else _Norm() if node["kind"] == "norm" else _Part()
        )
        for name, fact in node["facts"].items():
            if name in ("momentum", "scaling", "fan_in_fan_out"):
                setattr(module, name, fact)
        module.training = bool(node["training"])
        for name, number_of, trains in node["parameters"]:
            tensor = tensors.get(number_of)
            if tensor is None:
                tensor = _parameter(value_of[number_of], known.get(number_of), trains=bool(trains))
                tensors[number_of] = tensor
            module._parameters[_plain(name)] = tensor
        for name, number_of, persistent in node["buffers"]:
            if number_of not in tensors:
                tensors[number_of] = _buffer(value_of[number_of], known.get(number_of))
            module._buffers[_plain(name)] = tensors[number_of]
            if not persistent:
                module._non_persistent_buffers_set.add(name)
        made.append(module)
    for place, node in enumerate(nodes):
        for name, part in node["parts"]:
            if not 0 < part < len(made):
                raise ValueError("a model's description does not hold together")
            made[place]._modules[_plain(name)] = made[part]
    _refuse_cycles(nodes)
    outermost = made[0]
    assert isinstance(outermost, Shadow)  # noqa: S101 - made first
    outermost.number = number
    return outermost, tensors


def _parameter(value: Tensor, known: Tensor | None, *, trains: bool) -> nn.Parameter:
    parameter = known if isinstance(known, nn.Parameter) else nn.Parameter(value, trains)
    _put(parameter, value)
    parameter.requires_grad_(trains)
    return parameter


def _buffer(value: Tensor, known: Tensor | None) -> Tensor:
    if known is None or isinstance(known, nn.Parameter):
        return value
    _put(known, value)
    return known


def _put(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape == value.shape and tensor.dtype == value.dtype:
        tensor.data.copy_(value)
    else:
        tensor.data = value.to(tensor.device)


def _plain(name: Any) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError("a part of a model has no name")
    return name


def _refuse_cycles(nodes: Sequence[Any]) -> None:
    """A module that is part of itself would be walked through for ever."""
    done: set[int] = set()
    above: list[int] = []
    waiting: list[tuple[int, bool]] = [(0, False)]
    inside: set[int] = set()
    while waiting:
        place, left = waiting.pop()
        if left:
            inside.discard(above.pop())
            done.add(place)
            continue
        if place in inside:
            raise ValueError("a module is part of itself")
        if place in done:
            continue
        inside.add(place)
        above.append(place)
        waiting.append((place, True))
        waiting += [(part, False) for _, part in nodes[place]["parts"]]
