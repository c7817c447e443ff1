"""A checkpoint that a run saved, beside the run that is made again, at the same step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.manifest import digest_path
from auditspec.artifacts.saved import SavedCheckpoint
from auditspec.artifacts.weight_files import aligned
from auditspec.errors import EvidenceError
from auditspec.record.deviation import distance, optimizer_state_distance
from auditspec.record.format import CheckpointMatch
from auditspec.record.state import State, capture, named_buffers, named_parameters

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


def trained_names(model: nn.Module) -> list[str]:
    """The parameters that training changes: a checkpoint of the run must hold them."""
    return [name for name, p in named_parameters(model).items() if p.requires_grad]


def state_of(saved: SavedCheckpoint, model: nn.Module, optimizer: Optimizer) -> State:
    """What a checkpoint says of a model's parameters and buffers, and of its optimizer.

    Args:
        saved: the checkpoint.
        model: whose tensors are looked for, by name; those that are not trained may be missing.
        optimizer: whose state the checkpoint has by number, in the order of the groups' parameters.

    Raises:
        EvidenceError: if it is of another model.
    """
    parameters, buffers = named_parameters(model), named_buffers(model)
    given = aligned(saved.weights, trained_names(model))
    tensors = {} if given is None else given[0]
    state = State(
        {name: tensors[name] for name in parameters if name in tensors},
        {name: tensors[name] for name in buffers if name in tensors},
        _optimizer_state(saved.optimizer, model, optimizer),
    )
    odd = [
        name
        for name, tensor in (state.parameters | state.buffers).items()
        if tensor.shape != (parameters | buffers)[name].shape
    ]
    if given is None or odd:
        raise EvidenceError(
            f"{saved.path}: its weights are not those of the model{f': {odd[0]}' if odd else ''}",
            "name the checkpoints of this stage, and the code that trained them",
        )
    return state


def compared(
    stage: str, step: int, saved: SavedCheckpoint, model: nn.Module, optimizer: Optimizer
) -> CheckpointMatch:
    """Hold a saved checkpoint against model, optimizer, and generators as they stand.

    Raises:
        EvidenceError: if it is of another model, or cannot be read.
    """
    wanted, reached = state_of(saved, model, optimizer), capture(model, optimizer)
    return CheckpointMatch(
        stage=stage,
        step=step,
        path=saved.path.name,
        digest=digest_path(saved.path).digest,
        weights=_finite(distance(reached, State(wanted.parameters, wanted.buffers))),
        optimizer=_finite(optimizer_state_distance(reached, wanted))
        if wanted.optimizer_state
        else None,
        random=_same_random_state(saved.rng),
    )


def other_arguments(saved: SavedCheckpoint, arguments: Any) -> list[str]:
    """Plain arguments that a checkpoint of transformers' Trainer holds with another value than a trainer now.

    Where files and reports go is left out: it changes no number.
    """
    state = None if saved.arguments is None else saved.arguments.state
    if not isinstance(state, Mapping):
        return []
    now = vars(arguments)
    return sorted(
        name
        for name, value in state.items()
        if name in now
        and not name.startswith(REPORTING)
        and isinstance(value, PLAIN)
        and isinstance(now[name], PLAIN)
        and value != now[name]
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _optimizer_state(
    saved: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer
) -> dict[str, dict[str, Any]]:
    if saved is None:
        return {}
    names = {id(p): name for name, p in named_parameters(model).items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    slots = dict(saved["state"])
    named = {name: slots.get(number, slots.get(name)) for number, name in enumerate(order)}
    return {name: dict(state) for name, state in named.items() if state}


def _same_random_state(saved: Mapping[str, Any] | None) -> bool | None:
    """Whether the generators stand as the checkpoint says; None where it says nothing."""
    if saved is None or not isinstance(saved.get("cpu"), Tensor):
        return None
    same = torch.equal(saved["cpu"], torch.get_rng_state())
    if (state := saved.get("python")) is not None:
        same &= _plain(state) == _plain(random.getstate())
    if (state := saved.get("numpy")) is not None:
        same &= _plain(state) == _plain(np.random.get_state())
    return same


def _plain(value: Any) -> Any:
    """Nested lists of numbers, whatever arrays and sequences they stand in."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
