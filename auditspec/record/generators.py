"""The state of every global random generator: torch's, numpy's, and that of `random`.

A step draws from torch alone, whose state stands with its batches. A function that changes the model
may draw from any of them, once; its state is kept as a few tensors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def drawing_from(state: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """Draw from generators in a given state; puts those of the process back afterwards."""
    before = generators(device)
    try:
        set_generators(state, device)
        yield
    finally:
        set_generators(before, device)


def _packed(value: Any) -> Tensor:
    text = json.dumps(value, default=lambda array: array.tolist())
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()


def _unpacked(value: Tensor) -> Any:
    return json.loads(value.numpy().tobytes())
