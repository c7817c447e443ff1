"""Optimizers in the words of a record: any subclass of torch.optim.Optimizer.

A re-run builds an optimizer anew from its class and parameter groups, and puts recorded state into
it. So a class of the training code must keep its hyperparameters in the groups and what it learns
in `state`, per parameter; what it keeps elsewhere is refused by name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.errors import RecordError
from auditspec.record.describe import function_ref
from auditspec.record.format import FunctionRef, Group
from auditspec.record.state import OptimizerState, capture, is_part
from auditspec.record.trajectory import StageTrajectory, Step
from auditspec.record.uncompiled import uncompiled

PLAIN = frozenset({bool, int, float, str, type(None)})


def optimizer_code(optimizer: Optimizer) -> FunctionRef | None:
    """The optimizer's class in the training code; None for one of torch.optim.

    Raises:
        RecordError: if it does not stand at the top of a module, needs a closure, or shares its state out over processes.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RecordError(
            "LBFGS needs a closure, which cannot be recorded", "use another optimizer"
        )
    kind = type(optimizer)
    if kind.__module__.startswith("torch.distributed"):
        raise RecordError(
            f"{kind.__name__} is more than the update of one process, which cannot be recorded",
            "train with the optimizer that it wraps",
        )
    if getattr(torch.optim, kind.__name__, None) is kind:
        return None
    return function_ref(kind)


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, of one that a training library wrapped."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def build(kind: Any, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
    """A fresh optimizer of a class over parameter groups.

    The class's arguments are taken from the first group too: some have no default, and Adagrad
    fills its first state from one. Every group's own options hold all the same. A rate that a
    scheduler has set to zero is passed only if the class asks for one.
    """
    first = groups[0] if groups else {}
    arguments = list(inspect.signature(kind).parameters.values())[1:]  # the first takes the groups
    options = {
        a.name: first[a.name]
        for a in arguments
        if a.name in first and (a.name != "lr" or a.default is a.empty)
    }
    with uncompiled():
        optimizer: Optimizer = kind([dict(group) for group in groups], **options)
    return optimizer


def groups_of(model: nn.Module, optimizer: Optimizer) -> Iterator[Group]:
    """The optimizer's parameter groups, parameters by name.

    Raises:
        RecordError: if it holds parameters that the model does not, or options that are no plain
            values.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        foreign = [p for p in group["params"] if id(p) not in names]
        if foreign:
            raise RecordError(
                f"the optimizer holds {len(foreign)} parameter(s) that the model does not",
                "give it parameters of the recorded model only",
            )
        if isinstance(group.get("lr"), Tensor):
            raise RecordError(
                "a learning rate that is a tensor cannot be recorded", "use a plain number"
            )
        if "lr" not in group:
            raise RecordError(
                f"{type(optimizer).__name__} has no learning rate 'lr' in its parameter groups",
                "keep the step size under 'lr'",
            )
        options = options_of(group)
        for key, value in options.items():
            if not _recordable(value):
                raise RecordError(
                    f"{type(optimizer).__name__}'s option '{key}' ({type(value).__name__}) cannot "
                    "be recorded",
                    "use finite numbers, truth values, strings, or tuples of numbers",
                )
        yield Group(parameters=tuple(names[id(p)] for p in group["params"]), options=options)


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters as plain values."""
    options: dict[str, Any] = {}
    for key, value in group.items():
        if type(value) in PLAIN:  # nearly all of them; this runs at every recorded step
            options[key] = value
        elif isinstance(value, Tensor) and value.numel() == 1:
            options[key] = value.item()
        elif key not in ("params", "param_names"):
            options[key] = tuple(value) if isinstance(value, list | tuple) else value
    return options


def fresh_moments(model: nn.Module, optimizer: Optimizer) -> OptimizerState:
    """The state that a new optimizer of this kind begins with; most begin with none."""
    return capture(model, build(type(optimizer), optimizer.param_groups)).optimizer_state


def refuse_stale_gradients(model: nn.Module, optimizer: Optimizer, clip_norm: float | None) -> None:
    """Refuse frozen parameters that still hold a gradient which the stage would use.

    Raises:
        RecordError: if the optimizer would step along it (or decay, where it is zero), or clipping
            count it.
    """
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad or p.grad is None:
            continue
        counted = clip_norm is not None and (is_part(p) or bool(p.grad.any()))
        if id(p) in optimized or counted:  # of a part one cannot say
            raise RecordError(
                f"parameter '{name}' is frozen but still holds the gradient of an earlier step",
                "call model.zero_grad() when freezing it",
            )


def check_moments(optimizer_state: OptimizerState) -> None:
    """Refuse optimizer state that a state file cannot hold.

    Raises:
        RecordError: naming the first entry that is neither a tensor nor a plain value.
    """
    for name, values in optimizer_state.items():
        for key, value in values.items():
            if type(value) not in PLAIN and not isinstance(value, Tensor):
                raise RecordError(
                    f"the optimizer keeps a {type(value).__name__} as '{key}' of parameter '{name}', "
                    "which cannot be recorded",
                    "keep tensors and plain values: self.state[parameter][key]",
                )


def refuse_hidden_options(optimizer: Optimizer) -> None:
    """Refuse a class that a re-run could not build from its parameter groups.

    Raises:
        RecordError: if building it fails, or gives an optimizer with other attributes.
    """
    kind = type(optimizer)
    try:
        fresh = build(kind, optimizer.param_groups)
    except Exception as error:  # whatever the class raises is its user's news
        raise RecordError(
            f"{kind.__name__} cannot be built from its own parameter groups: "
            f"{type(error).__name__}: {error}",
            "let its constructor take parameter groups, with the options in them",
        ) from None
    own, wanted = _attributes(optimizer), _attributes(fresh)
    hidden = [key for key, value in wanted.items() if own.get(key) != value]
    if hidden:
        raise RecordError(
            f"{kind.__name__} keeps {', '.join(sorted(hidden)[:3])} outside its parameter groups",
            "pass it to Optimizer.__init__ among the defaults, and read it from the group",
        )


class Watch:
    """Sees to it that a step of a class of the training code changes nothing that is not recorded."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._attributes = _attributes(optimizer)

    def check(self, used: Sequence[Mapping[str, Any]], place: str) -> None:
        """Refuse attributes and options that a step changed; a counter in a group may go on.

        Args:
            used: options of each parameter group as the step used them.
            place: the step, for the message.

        Raises:
            RecordError: naming them.
        """
        kind = type(self._optimizer).__name__
        now = _attributes(self._optimizer)
        changed = [key for key, value in self._attributes.items() if now.get(key) != value]
        for before, group in zip(used, self._optimizer.param_groups, strict=True):
            changed += [
                key
                for key, value in options_of(group).items()
                if type(value) is not int and value != before.get(key)
            ]
        if changed:
            raise RecordError(
                f"{place}: {kind} keeps what it learns in {', '.join(sorted(set(changed))[:3])}, "
                "which no recorded state holds",
                "keep it per parameter: self.state[parameter][key]",
            )


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's own plain attributes."""
    return {
        key: value
        for key, value in vars(optimizer).items()
        if type(value) in PLAIN or (isinstance(value, tuple) and _recordable(value))
    }


def _recordable(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(type(v) in (int, float, type(None)) and _recordable(v) for v in value)
    return type(value) in PLAIN and (not isinstance(value, float) or math.isfinite(value))


def match_skipped_gradients(
    stage: StageTrajectory,
    step: Step,
    gradients: dict[str, Tensor | None],
    parameters: Mapping[str, Tensor],
) -> None:
    """Make gradients, in place, what the recorded step's optimizer had.

    torch.optim skips a parameter whose gradient is None, but decays one whose gradient is zero and
    goes on with its momentum. Which of the two an unreached parameter has, `zero_grad` decides.
    """
    skipped = step.without_gradient
    if skipped is None:
        return
    for group in stage.groups:
        for name in group.parameters:
            if name in skipped:
                gradients[name] = None
            elif gradients[name] is None:
                gradients[name] = torch.zeros_like(parameters[name])
