"""What a saved checkpoint says of a model, its optimizer, its trainer, and the random generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.saved import SavedCheckpoint
from auditspec.artifacts.weight_files import aligned, fitted
from auditspec.errors import EvidenceError
from auditspec.record.adapters import adapted
from auditspec.record.describe_optimizer import options_of
from auditspec.record.state import State, capture, named_buffers, named_parameters, ties

PLAIN = (bool, int, float, str)
REPORTING = (
    "output_dir",
    "logging_",
    "run_name",
    "report_to",
    "disable_tqdm",
    "hub_",
    "push_to_hub",
)
COUNTERS = ("step",)
"""Keys under which optimizers count their steps, parameter by parameter."""


def trained_names(model: nn.Module) -> list[str]:
    """The parameters that training changes: a checkpoint of the run must hold them."""
    return [name for name, p in named_parameters(model).items() if p.requires_grad]


def names_to_find(model: nn.Module) -> list[str]:
    """Names that tell the model's own tensors from others in the same file; none where adapters may stand alone."""
    names = trained_names(model)
    return [] if adapted(named_parameters(model)).adapters else names


def state_of(saved: SavedCheckpoint, model: nn.Module, optimizer: Optimizer) -> State:
    """What a checkpoint says of a model's parameters and buffers, and of its optimizer.

    Args:
        saved: the checkpoint.
        model: whose tensors are looked for, by name; those that are not trained may be missing. Adapters of
            peft may stand alone, under the names that peft saves them by.
        optimizer: whose state the checkpoint has by number, in the order of the groups' parameters.

    Raises:
        EvidenceError: if it is of another model.
    """
    parameters, buffers, trained = (
        named_parameters(model),
        named_buffers(model),
        trained_names(model),
    )
    tensors = fitted(saved.weights, trained, ties(model))
    if any(name not in tensors for name in trained):
        tensors = _adapters_alone(saved.weights, parameters)
    state = State(
        {name: tensors[name] for name in parameters if name in tensors},
        {name: tensors[name] for name in buffers if name in tensors},
        _optimizer_state(saved.optimizer, model, optimizer),
    )
    odd = [name for name in trained if name not in tensors] + [
        name
        for name, tensor in (state.parameters | state.buffers).items()
        if tensor.shape != (parameters | buffers)[name].shape
    ]
    if odd:
        raise EvidenceError(
            f"{saved.path}: its weights are not those of the model: {odd[0]}",
            "name the checkpoints of this stage, and the code that trained them",
        )
    return state


def other_arguments(saved: SavedCheckpoint, now: Mapping[str, Any]) -> list[str]:
    """Plain arguments that a checkpoint of transformers' Trainer holds with another value than a trainer now.

    Where files and reports go is left out: it changes no number.
    """
    state = None if saved.arguments is None else saved.arguments.state
    if not isinstance(state, Mapping):
        return []
    return [
        name
        for name, value in state.items()
        if name in now
        and not name.startswith(REPORTING)
        and isinstance(value, PLAIN)
        and isinstance(now[name], PLAIN)
        and value != now[name]
    ]


def other_options(saved: SavedCheckpoint, optimizer: Optimizer) -> list[str]:
    """Options of the optimizer that a checkpoint holds with another value: `optimizer.lr`.

    Where a schedule sets the learning rate it may have been set for the next step already: the rate with which
    the schedule began is compared in its place.
    """
    groups = () if saved.optimizer is None else saved.optimizer["param_groups"]
    names: set[str] = set()
    for given, group in zip(groups, optimizer.param_groups, strict=False):
        now = options_of(group)
        scheduled = {"lr"} if "initial_lr" in given else set()
        names |= {
            f"optimizer.{key}"
            for key, value in given.items()
            if key in now and key not in scheduled and _plain(value) != _plain(now[key])
        }
    return sorted(names)


def steps_ahead(saved: SavedCheckpoint, model: nn.Module, optimizer: Optimizer) -> int:
    """How many steps more a checkpoint's optimizer counts than one that stands; 0 where it counts none."""
    now = capture(model, optimizer).optimizer_state
    more = {
        int(state[key]) - int(now.get(name, {}).get(key, 0))
        for name, state in _optimizer_state(saved.optimizer, model, optimizer).items()
        for key in COUNTERS
        if key in state
    }
    return more.pop() if len(more) == 1 else 0


def same_random_state(
    saved: Mapping[str, Any] | None, begun: Mapping[str, Any] = MappingProxyType({})
) -> bool | None:
    """Whether the generators stand as a checkpoint says; None where it says nothing.

    Args:
        saved: `cpu`, and `python` and `numpy` where those were saved.
        begun: states of the last two from which no number was drawn if they still stand so: scripts that do not
            use them leave them unseeded.
    """
    if saved is None or not isinstance(saved.get("cpu"), Tensor):
        return None
    same = torch.equal(saved["cpu"], torch.get_rng_state())
    for kind, now in other_generators().items():
        if kind in saved and now != begun.get(kind):
            same &= _plain(saved[kind]) == now
    return same


def other_generators() -> dict[str, Any]:
    """The states of the generators of Python and numpy, as lists of numbers."""
    return {"python": _plain(random.getstate()), "numpy": _plain(np.random.get_state())}


def _adapters_alone(
    weights: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Adapters, and layers that were trained in full beside them, under the model's names; else nothing."""
    parts = adapted(parameters)
    recorded = {name: parts.plain[name] for name in parts.saved}
    for adapter in parts.adapters.values():
        recorded |= adapter.beside
    own = aligned(weights, recorded) if recorded else None
    return {} if own is None else {name: own[0][said] for said, name in recorded.items()}


def _optimizer_state(
    saved: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer
) -> dict[str, dict[str, Any]]:
    if saved is None:
        return {}
    names = {id(p): name for name, p in named_parameters(model).items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbered = dict(enumerate(order))
    return {str(numbered.get(key, key)): dict(s) for key, s in saved["state"].items() if s}


def _plain(value: Any) -> Any:
    """Nested lists of numbers, whatever arrays and sequences they stand in."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
