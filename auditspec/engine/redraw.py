"""Beginnings drawn again: the factory, or a change of the model, under other random numbers.

What a behaviour reads off them tells a fault that was put into the beginning from one that chance put
there. A function that seeds the generators itself would always draw the same: seeding is held off
while it runs, so that the random numbers are others whatever it asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from auditspec.record.generators import drawing_from, generators
from auditspec.record.state import State, capture

HELD_OFF: ContextVar[bool] = ContextVar("held_off", default=False)
"""Whether seeding is held off: a factory in another process has to be told."""
APART = (3.0, 3.0, 9.0, 9.0)
"""How far, in ranges of the draws, a tensor's mean, norm, least and largest value may lie outside their range
and pass as a draw. Extremes have exponential tails: beyond a ranges of n draws lies one more with the
probability 1 / binomial(n + a, n - 1), 3e-6 for 12 draws, where 3 ranges would be passed once in 1400."""


@contextmanager
def drawing_anew(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from generators that were seeded here, and that nothing inside can seed again; puts those of the
    process back afterwards.
    """
    with drawing_from(generators(device), device):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        with seeds_held_off():
            yield


@contextmanager
def seeds_held_off() -> Iterator[None]:
    """Let nothing inside seed a generator."""
    token = HELD_OFF.set(True)
    try:
        with (
            patch.object(torch, "manual_seed", _held_off),
            patch.object(torch.random, "manual_seed", _held_off),
            patch.object(torch.cuda, "manual_seed", _held_off),
            patch.object(torch.cuda, "manual_seed_all", _held_off),
            patch.object(np.random, "seed", _held_off),
            patch.object(random, "seed", _held_off),
        ):
            yield
    finally:
        HELD_OFF.reset(token)


def _held_off(*_: object, **__: object) -> None:
    """In place of a function that seeds a generator."""


def drawn_starts(
    factory: Callable[[], nn.Module], seeds: Sequence[int], device: torch.device
) -> Iterator[State]:
    """The models that a factory builds under other random numbers."""
    for seed in seeds:
        with drawing_anew(seed, device):
            state = capture(factory(), None)
        yield state


def identical(states: Sequence[State]) -> bool:
    """Whether several states hold the very same numbers."""
    first, *others = ({**s.parameters, **s.buffers} for s in states)
    return all(
        tensors.keys() == first.keys() and all(torch.equal(t, tensors[n]) for n, t in first.items())
        for tensors in others
    )


def could_be_drawn(state: State, draws: Sequence[State]) -> str:
    """The name of a tensor that no draw is like, in size, spread, or extremes; empty if there is none.

    Its mean, norm, least and largest value must lie within the range of those of the draws, widened by
    `APART` ranges; one that is the same in all draws must be the same here.
    """
    for name, tensor in (state.parameters | state.buffers).items():
        statistics = [_statistics((d.parameters | d.buffers).get(name)) for d in draws]
        if any(h is None for h in statistics):
            return name
        table, ours = torch.stack([h for h in statistics if h is not None]), _statistics(tensor)
        low, high = table.min(0).values, table.max(0).values
        slack = torch.tensor(APART, dtype=low.dtype) * (high - low) + 1e-6 * (1 + high.abs())
        if ours is None or bool(((ours < low - slack) | (ours > high + slack)).any()):
            return name
    return ""


def _statistics(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    values = tensor.detach().double().flatten()
    if not len(values):
        return torch.zeros(4, dtype=torch.float64)
    return torch.stack([values.mean(), values.norm(), values.min(), values.max()])


def same_start(left: State, right: Mapping[str, Tensor]) -> str:
    """The name of a parameter or buffer in which a state differs from given tensors; empty if none does."""
    tensors = left.parameters | left.buffers
    for name, tensor in tensors.items():
        other = right.get(name)
        if (
            other is None
            or other.shape != tensor.shape
            or not torch.equal(other.to(tensor), tensor)
        ):
            return name
    return ""
