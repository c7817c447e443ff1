"""What stands around a call, and has to stand around it in the other process too: switches, modes, generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from auditspec.engine.autocast import CASTING, casting
from auditspec.engine.execution import set_deterministic
from auditspec.engine.redraw import HELD_OFF, seeds_held_off
from auditspec.engine.widening import Widening
from auditspec.record.format import Autocast
from auditspec.record.generators import Generators, set_generators
from auditspec.record.numerics import numerics_now

CPU = torch.device("cpu")
_KERNELS = ("flash", "mem_efficient", "math", "cudnn")


def switches() -> dict[str, Any]:
    """The process's switches that decide how numbers are computed."""
    cuda: Any = torch.backends.cuda
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "numerics": numerics_now(),
        "attention": [bool(getattr(cuda, f"{name}_sdp_enabled")()) for name in _KERNELS],
        "default": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def set_switches(wanted: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Set those that are not so yet."""
    if wanted["threads"] != now.get("threads"):
        torch.set_num_threads(wanted["threads"])
    if wanted["deterministic"] != now.get("deterministic"):
        set_deterministic(wanted["deterministic"])
    if wanted["default"] != now.get("default"):
        torch.set_default_dtype(getattr(torch, wanted["default"]))
    if wanted["attention"] != now.get("attention"):
        cuda: Any = torch.backends.cuda
        for name, on in zip(_KERNELS, wanted["attention"], strict=True):
            getattr(cuda, f"enable_{name}_sdp")(on)
    if wanted["numerics"] != now.get("numerics"):
        from auditspec.record import numerics

        for name, on in wanted["numerics"].items():
            if numerics_now().get(name) is not on:
                setattr(*numerics.SWITCHES[name], on)


def modes() -> dict[str, Any]:
    """The modes that a call is made in."""
    autocast = CASTING.get()
    stack: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    widening = next((m for m in stack if isinstance(m, Widening)), None)
    return {
        "grad": torch.is_grad_enabled(),
        "casting": None if autocast is None else autocast.model_dump(),
        "widening": None if widening is None else [widening.drawn, widening.dtype],
        "held_off": HELD_OFF.get(),
    }


@contextmanager
def in_modes(wanted: Mapping[str, Any], model: nn.Module | None) -> Iterator[None]:
    """Make a call in the modes of the other process."""
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(wanted["grad"]))
        if wanted["casting"] is not None and model is not None:
            stack.enter_context(casting(model, Autocast(**wanted["casting"])))
        if wanted["widening"] is not None:
            stack.enter_context(Widening(*wanted["widening"]))
        if wanted["held_off"]:
            stack.enter_context(seeds_held_off())
        yield


class Drawn:
    """Keeps the random generators of two processes at one state: what one draws, the other has drawn.

    Args:
        device: whose generator counts beside the CPU's.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self.known: Generators | None = None
        """As both processes have them."""

    def news(self) -> dict[str, bytes]:
        """The states of the generators that the other process does not know."""
        now = Generators.now(self.device)
        drawn = None if self.known is None else self.known.drawn_from(now)
        self.known = now
        return now.states(drawn)

    def take(self, states: Mapping[str, bytes]) -> None:
        """Take over the states that the other process told.

        Raises:
            RecordError: if one is none.
        """
        if states:
            tensors = {kind: _bytes(state) for kind, state in states.items()}
            set_generators(tensors, self.device)
            self.known = Generators.now(self.device)


def _bytes(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def seeded() -> None:
    """Nothing of a process's own goes into its first random numbers."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
