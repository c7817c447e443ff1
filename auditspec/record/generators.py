"""The state of every global random generator: torch's, numpy's, and that of `random`.

The states of those that a pass drew from stand with its batch. A function that changes the model may
draw from any of them; theirs stand with the stage's first state.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from auditspec.errors import RecordError
from auditspec.record.state import random_state, set_random_state


def generators(device: torch.device) -> dict[str, Tensor]:
    """The state of the global generators of this process and of a device."""
    numpy = np.random.get_state(legacy=False)
    return random_state(device) | {
        "numpy": _packed(numpy),
        "python": _packed(random.getstate()),
    }


def set_generators(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to a state of `generators`; what it does not hold stays as it is.

    Raises:
        RecordError: if a generator of this process cannot take it.
    """
    try:
        set_random_state(state, device)
        if "numpy" in state:
            numpy_state = _unpacked(state["numpy"])
            numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
            np.random.set_state(numpy_state)
        if "python" in state:
            version, numbers, gauss = _unpacked(state["python"])
            random.setstate((version, tuple(numbers), gauss))
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise RecordError(
            f"a recorded state of a random generator cannot be used: {error}",
            "audit with the torch and numpy that trained the model, or ask for the record again",
        ) from None


@dataclass(frozen=True)
class Generators:
    """The state of every global generator at one moment, cheap to take and to compare."""

    of_torch: dict[str, bytes]
    of_numpy: Any
    of_python: Any

    @classmethod
    def now(cls, device: torch.device) -> Generators:
        """As they stand in this process."""
        states = {kind: state.numpy().tobytes() for kind, state in random_state(device).items()}
        return cls(states, np.random.get_state(legacy=False), random.getstate())

    def states(self, kinds: Iterable[str] | None = None) -> dict[str, bytes]:
        """Those of some kinds as `set_generators` takes them; None: of all."""
        wanted = {*self.of_torch, "numpy", "python"} if kinds is None else {*kinds}
        states = {kind: state for kind, state in self.of_torch.items() if kind in wanted}
        for kind, state in (("numpy", self.of_numpy), ("python", self.of_python)):
            if kind in wanted:
                states[kind] = _packed(state).numpy().tobytes()
        return states

    def drawn_from(self, later: Generators) -> dict[str, bytes]:
        """These states of the generators that were drawn from up to a later moment."""
        drawn = dict(self.of_torch) if self.of_torch != later.of_torch else {}
        if not _same_numpy(self.of_numpy, later.of_numpy):
            drawn |= self.states(["numpy"])
        if self.of_python != later.of_python:
            drawn |= self.states(["python"])
        return drawn


def go_to(states: Mapping[str, bytes], device: torch.device) -> None:
    """Set the generators to the states that stand with a batch; others stay as they are.

    Raises:
        RecordError: if a generator of this process cannot take one.
    """
    tensors = {
        kind: torch.frombuffer(bytearray(state), dtype=torch.uint8)
        for kind, state in states.items()
    }
    set_generators(tensors, device)


def seed(number: int) -> None:
    """Seed torch's generators, as `torch.manual_seed` does; that keeps a trace of every call while CUDA sleeps."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Let code draw what it likes; puts the generators of the process back afterwards."""
    before = random_state(device), np.random.get_state(legacy=False), random.getstate()
    try:
        yield
    finally:
        set_random_state(before[0], device)
        np.random.set_state(before[1])
        random.setstate(before[2])


@contextmanager
def drawing_from(state: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """Draw from generators in a given state; puts those of the process back afterwards."""
    before = generators(device)
    try:
        set_generators(state, device)
        yield
    finally:
        set_generators(before, device)


def _same_numpy(left: Any, right: Any) -> bool:
    """Whether numpy's generator was not drawn from between two of its states."""
    ours, theirs = left["state"], right["state"]
    return bool(
        ours["pos"] == theirs["pos"]
        and left["has_gauss"] == right["has_gauss"]
        and left["gauss"] == right["gauss"]
        and left["bit_generator"] == right["bit_generator"]
        and np.array_equal(ours["key"], theirs["key"])
    )


def _packed(value: Any) -> Tensor:
    text = json.dumps(value, default=lambda array: array.tolist())
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()


def _unpacked(value: Tensor) -> Any:
    return json.loads(value.numpy().tobytes())
