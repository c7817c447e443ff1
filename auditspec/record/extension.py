"""Changes of the model between two stages: a new head, adapters, a frozen copy, a part that goes.

A function changes the model in place, or gives another one around it. A parameter or buffer whose *object* survives goes on, under
another name perhaps; others are brought by the function; what is gone is dropped. Where the values of
each come from is another question, which `provenance.py` answers by making the change again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.record.generators import drawing_from
from auditspec.record.state import named_buffers, named_parameters
from auditspec.record.unregistered import unregistered

Extend = Callable[..., nn.Module | None]
"""(model) -> None or (model, *datasets) -> None, in place, or one that gives another model; a function at
the top of a module of the training code."""
BoundExtend = Callable[[nn.Module], nn.Module | None]
"""The same with its data sets."""
Tensors = dict[str, Tensor]
"""Parameters and buffers of a model by name, copied to the CPU."""
T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """What a function did to the objects of a model, by name."""

    brought: tuple[str, ...]
    """Parameters and buffers that were not there before."""
    renamed: dict[str, str]
    """New name of a survivor, with its old one."""

    def before(self, name: str) -> str | None:
        """The old name of a tensor that survived; None for one that was brought."""
        return None if name in self.brought else self.renamed.get(name, name)


@dataclass(frozen=True)
class Made:
    """A change of the model, made: its tensors before and after."""

    model: nn.Module
    """As it is afterwards."""
    change: Change
    before: Tensors
    after: Tensors
    unregistered: Tensors
    """What the model and the function hold besides, by where it is held."""

    @property
    def form(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and precision of every tensor afterwards."""
        return {name: (t.shape, t.dtype) for name, t in self.after.items()}


def tensors_of(model: nn.Module) -> Tensors:
    """Copies of a model's parameters and buffers."""
    tensors: dict[str, Tensor] = {**named_parameters(model), **named_buffers(model)}
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def apply(model: nn.Module, extend: BoundExtend) -> tuple[nn.Module, Change]:
    """Change a model; give what it is then, and tell what became of its objects."""
    kinds: tuple[Callable[[nn.Module], dict[str, Any]], ...] = (named_parameters, named_buffers)
    before = [kind(model) for kind in kinds]  # held: a freed tensor's id would be given again
    given = extend(model)
    model = given if isinstance(given, nn.Module) else model
    old = {id(tensor): name for tensors in before for name, tensor in tensors.items()}
    brought: list[str] = []
    renamed: dict[str, str] = {}
    for kind in kinds:
        for name, tensor in kind(model).items():
            was = old.get(id(tensor))
            if was is None:
                brought.append(name)
            elif was != name:
                renamed[name] = was
    return model, Change(tuple(brought), renamed)


def make(model: nn.Module, extend: BoundExtend) -> Made:
    """Change a model; keep what it was and became."""
    before = tensors_of(model)
    after, change = apply(model, extend)
    return Made(after, change, before, tensors_of(after), unregistered(after, extend))


def bound(extend: Extend, datasets: Sequence[Dataset]) -> BoundExtend:
    """A function with the data sets that it is given."""
    return partial(_with_data, extend, tuple(datasets)) if datasets else extend


def _with_data(extend: Extend, datasets: tuple[Dataset, ...], model: nn.Module) -> nn.Module | None:
    return extend(model, *datasets)


def build(
    factory: Callable[[], nn.Module], extensions: Sequence[BoundExtend]
) -> tuple[nn.Module, Change]:
    """Build a model and change it step by step; random numbers are drawn aside.

    Returns:
        The model, and what the last function did to it.
    """
    change = Change((), {})
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model = factory()
        for extend in extensions:
            model, change = apply(model, extend)
    return model, change


@dataclass(frozen=True)
class Extension:
    """A change of the model that can be made again, on any values.

    The model before it is built by the factory and the changes before; it is in train mode, and
    frozen as in the stage before. The change draws from the generators as they stood.
    """

    name: str
    factory: Callable[[], nn.Module]
    earlier: Sequence[BoundExtend]
    extend: BoundExtend
    frozen: tuple[str, ...] | None
    """Parameters frozen in the stage before; None before the first, which leaves them as built."""
    generators: Mapping[str, Tensor]
    device: torch.device

    def on(self, values: Mapping[str, Tensor] | None) -> Made:
        """Make the change on a model with these values; with None, on one as it is built.

        Raises:
            KeyError: if the model before the change has a tensor that `values` lacks.
        """
        with drawing_from(self.generators, self.device):
            model = build(self.factory, self.earlier)[0].to(self.device).train()
        with drawing_from(self.generators, self.device):
            tensors: dict[str, Tensor] = {**named_parameters(model), **named_buffers(model)}
            with torch.no_grad():
                for name, tensor in tensors.items() if values is not None else ():
                    tensor.copy_(values[name])  # type: ignore[index]
            for name, parameter in named_parameters(model).items():
                if self.frozen is not None:
                    parameter.requires_grad_(name not in self.frozen)
            return make(model, self.extend)


def carried(values: Mapping[str, T], origin: Mapping[str, str]) -> dict[str, T]:
    """Values of the model before a change under their names after it; others are left out."""
    return {name: values[old] for name, old in origin.items() if old in values}
