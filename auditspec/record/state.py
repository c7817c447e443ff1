"""The state of training, xi = (theta, s): parameters and buffers, and the optimizer's moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.errors import RecordError

OptimizerState = dict[str, dict[str, Any]]
"""Optimizer state of each parameter, by the parameter's name: tensors, and a few plain numbers."""


@dataclass(frozen=True)
class State:
    """xi_k, with the random state that the next step would find.

    `parameters` and `buffers` by name; `moments` is empty where the optimizer has no state yet.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer_state: OptimizerState = field(default_factory=dict)
    rng: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)
    """Of the first state of a stage for which the model was changed: the random generators just before."""

    def without_optimizer(self) -> State:
        """The same parameters and buffers under a fresh optimizer."""
        return replace(self, optimizer_state={})


def device_of(model: nn.Module) -> torch.device:
    """Where the model lies; the CPU for one without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, under its first name."""
    return dict(model.named_parameters())


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every persistent or plain buffer once, under its first name."""
    return dict(model.named_buffers())


def frozen_in(model: nn.Module) -> tuple[str, ...]:
    """Parameters that take no gradient at present."""
    return tuple(name for name, p in named_parameters(model).items() if not p.requires_grad)


def is_part(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this process may hold a part only, the others theirs."""
    return hasattr(tensor, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds parts of the model only."""
    own = (
        p for module in model.modules() for p in module._parameters.values()
    )  # parameters() is FSDP1's own
    return any(is_part(p) for p in own if p is not None)


def ties(model: nn.Module) -> dict[str, str]:
    """Second names of shared parameters and buffers, each with its first name."""
    first = {id(p): name for name, p in model.named_parameters()}
    first |= {id(b): name for name, b in model.named_buffers()}
    every = [*model.named_parameters(remove_duplicate=False)]
    every += [*model.named_buffers(remove_duplicate=False)]  # type: ignore[list-item]
    return {name: first[id(tensor)] for name, tensor in every if first[id(tensor)] != name}


def capture(
    model: nn.Module, optimizer: Optimizer | None, rng: Mapping[str, Tensor] | None = None
) -> State:
    """Copy the state of a model and its optimizer to the CPU.

    Raises:
        RecordError: if the optimizer keeps state that belongs to no parameter of the model.
    """
    state = _copied(model, optimizer, lambda tensor: tensor.detach().cpu().clone())
    return replace(state, rng=dict(rng or {}))


def snapshot(model: nn.Module, optimizer: Optimizer) -> State:
    """Copy the state of a model and its optimizer where it lies, for `put_back`.

    Raises:
        RecordError: as `capture`.
    """
    return _copied(model, optimizer, lambda tensor: tensor.detach().clone())


def held(model: nn.Module, optimizer: Optimizer | None) -> State:
    """The state of a model and its optimizer as it lies: training goes on in its tensors.

    Raises:
        RecordError: as `capture`.
    """
    return _copied(model, optimizer, lambda tensor: tensor.detach())


def put_back(state: State, model: nn.Module, optimizer: Optimizer) -> None:
    """Go back to a snapshot of the same model and optimizer; the snapshot stays as it is."""
    optimizer.state.clear()
    restore(state, model, optimizer)


def _copied(
    model: nn.Module, optimizer: Optimizer | None, copy: Callable[[Tensor], Tensor]
) -> State:
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer_state: OptimizerState = {}
    for parameter, slots in optimizer.state.items() if optimizer is not None else ():
        name = names.get(id(parameter))
        if name is None:
            raise RecordError(
                f"the optimizer keeps state under {_short(parameter)}, which is no parameter "
                "of the model",
                "keep optimizer state per parameter: self.state[parameter][key]",
            )
        optimizer_state[name] = {
            slot: copy(value) if isinstance(value, Tensor) else value
            for slot, value in slots.items()
        }
    return State(
        parameters={n: copy(p) for n, p in named_parameters(model).items()},
        buffers={n: copy(b) for n, b in named_buffers(model).items()},
        optimizer_state=optimizer_state,
    )


def restore(state: State, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Put a state into a model and its optimizer, in their own device and precision.

    Tensors in the parameter's precision take that of the model's parameter; others (counters,
    moments in a precision of their own) keep theirs. A state without moments leaves the optimizer
    as it is: a fresh one keeps what its class begins with.

    Raises:
        KeyError: if the model has other parameters or buffers than the state.
    """
    with torch.no_grad():
        for own, given in (
            (named_parameters(model), state.parameters),
            (named_buffers(model), state.buffers),
        ):
            if own.keys() != given.keys():
                raise KeyError(", ".join(sorted(own.keys() ^ given.keys())))
            for name, tensor in own.items():
                tensor.copy_(given[name])
    if optimizer is None or not state.optimizer_state:
        return
    optimizer.state.clear()
    parameters = named_parameters(model)
    on_host = _scalars_on_host(optimizer)
    for name, values in state.optimizer_state.items():
        parameter, dtype = parameters[name], state.parameters[name].dtype
        optimizer.state[parameter] = {
            key: _like(value, parameter, dtype, on_host) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The random state of the CPU and, where the model lies on another device, of that device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to a random state; one of another kind of device is left out."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "device" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)


def deviation(left: State, right: State) -> float:
    """Relative deviation of the parameters and floating buffers, ||left - right|| / ||right||.

    NaN or infinity on either side counts as infinite.
    """
    squares, reference = 0.0, 0.0
    for ours, theirs in ((left.parameters, right.parameters), (left.buffers, right.buffers)):
        for name, tensor in theirs.items():
            if not tensor.is_floating_point():
                continue
            wanted = tensor.double().cpu()
            difference = ours[name].double().cpu() - wanted
            squares += float(difference.square().sum())
            reference += float(wanted.square().sum())
    if not math.isfinite(squares) or not math.isfinite(reference):
        return math.inf
    if squares == 0:
        return 0.0
    return math.sqrt(squares / reference) if reference else math.inf


def _scalars_on_host(optimizer: Optimizer) -> bool:
    """Whether 0-dimensional tensors of the state lie on the CPU, as torch.optim keeps them.

    Fused and capturable optimizers, and those of the training code, keep them beside the parameter.
    """
    own = getattr(torch.optim, type(optimizer).__name__, None) is type(optimizer)
    group = optimizer.param_groups[0]
    return own and not group.get("fused") and not group.get("capturable")


def _like(value: Tensor, parameter: nn.Parameter, recorded: torch.dtype, on_host: bool) -> Tensor:
    if value.dim() == 0:
        return value.clone() if on_host else value.to(parameter.device, copy=True)
    dtype = parameter.dtype if value.dtype == recorded else value.dtype
    return value.to(parameter.device, dtype, copy=True)


def _short(key: Any) -> str:
    return f"a tensor of shape {tuple(key.shape)}" if isinstance(key, Tensor) else repr(key)[:40]
