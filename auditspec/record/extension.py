"""Changes of the model between two stages: a new head, adapters, a part that goes.

A function changes the model in place. A parameter or buffer whose *object* survives is carried on,
under another name perhaps; every other one is added, and begins each counterfactual with the value
that it had where its stage began in the record. What is gone is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from auditspec.errors import RecordError
from auditspec.record.state import named_buffers, named_parameters

Extend = Callable[[nn.Module], None]
"""(model) -> None, in place; a function at the top of a module of the training code."""
T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """What a function did to a model's parameters and buffers, by name."""

    added: tuple[str, ...]
    renamed: dict[str, str]
    """New name of a carried tensor, with the old one."""


def apply(model: nn.Module, extend: Extend) -> Change:
    """Change a model in place; tell what became of its tensors."""
    kinds: tuple[Callable[[nn.Module], dict[str, Any]], ...] = (named_parameters, named_buffers)
    before = [kind(model) for kind in kinds]  # held: a freed tensor's id would be given again
    extend(model)
    added: list[str] = []
    renamed: dict[str, str] = {}
    for kind, tensors in zip(kinds, before, strict=True):
        names = {id(tensor): name for name, tensor in tensors.items()}
        for name, tensor in kind(model).items():
            old = names.get(id(tensor))
            if old is None:
                added.append(name)
            elif old != name:
                renamed[name] = old
    return Change(tuple(added), renamed)


def build(
    factory: Callable[[], nn.Module], extensions: Sequence[Extend]
) -> tuple[nn.Module, Change]:
    """Build a model and change it step by step; random numbers are drawn aside.

    Returns:
        The model, and what the last function did to it.
    """
    change = Change((), {})
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model = factory()
        for extend in extensions:
            change = apply(model, extend)
    return model, change


def carried(values: Mapping[str, T], origin: Mapping[str, str]) -> dict[str, T]:
    """Values of the model before a change under their names after it; added names are left out."""
    return {name: values[old] for name, old in origin.items() if old in values}


def check_rebuilt(
    model: nn.Module, change: Change, factory: Callable[[], nn.Module], extensions: Sequence[Extend]
) -> None:
    """Refuse a function that changes a freshly built model otherwise than the one that is trained.

    Raises:
        RecordError: naming what differs.
    """
    built, again = build(factory, extensions)
    odd = set(change.added) ^ set(again.added) | (change.renamed.items() ^ again.renamed.items())
    shapes = [
        {
            name: (t.shape, t.dtype)
            for name, t in {**named_parameters(m), **named_buffers(m)}.items()
        }
        for m in (model, built)
    ]
    if odd or shapes[0] != shapes[1]:
        names = {str(n) for n in odd} | {n for n, _ in shapes[0].items() ^ shapes[1].items()}
        raise RecordError(
            f"{extensions[-1].__name__} changes a model that the factory builds otherwise than the "
            f"one that is trained: {', '.join(sorted(names)[:3])}",
            "let it depend on nothing but the model's architecture",
        )
