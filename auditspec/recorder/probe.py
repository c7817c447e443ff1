"""What a stage's first steps were seen to do, for whoever has to say why a re-run does not land.

A record holds what a re-run needs; these notes hold what it does not: gradients as the last pass
left them and as the optimizer took them, what lay in `.grad` before, weights between two steps, the
batches as they were loaded. They are norms and digests, and are thrown away with the self-check.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from auditspec.record.codec import tensors_digest
from auditspec.record.state import is_sharded, named_parameters

COMPILED = "compiled"
NOTED = 8
"""Steps of a stage that are noted."""
Norms = dict[str, float]
"""2-norms, by parameter."""


@dataclass(frozen=True)
class StepNote:
    """What was seen of one step; gradients and weights by their 2-norms."""

    step: int
    batches: tuple[str, ...]
    """Digests of the batches, as `load_batch` gave them; those that others loaded are not seen."""
    before: Norms
    """Gradients that were there, other than zero, when the first of the step came."""
    between: Norms
    """Gradients that were there when the later ones came: the largest."""
    backwards: int
    """How often a gradient was accumulated."""
    backward: Norms
    """Gradients after the last pass."""
    taken: Norms
    """Gradients that the optimizer took."""
    largest: Norms
    """Their largest absolute values."""
    begin: Norms
    """Weights before the update."""
    end: Norms
    """Weights after it."""


@dataclass(frozen=True)
class Notes:
    """What was seen of a stage."""

    signature: dict[str, str] = field(default_factory=dict)
    """Of the model as the stage began: `signature`."""
    steps: dict[int, StepNote] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "signature": self.signature,
            "steps": [asdict(note) for note in self.steps.values()],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Notes:
        """What `plain` gave."""
        steps = [StepNote(**note) for note in plain["steps"]]
        return cls(plain["signature"], {note.step: note for note in steps})


class Probe:
    """Notes a stage's first steps, by hooks of the parameters and the optimizer.

    Args:
        model: the model in training, before any hook of the recorder's is on it.
        optimizer: its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._parameters = {
            name: p
            for name, p in named_parameters(model).items()
            if p.requires_grad and p.numel() and type(p.data) is Tensor
        }
        self._model = model
        self._optimizer = optimizer
        self._signature = signature(model)
        self._notes: dict[int, dict[str, Any]] = {}
        self._hooks: list[Any] = []
        self._step_hooks: list[Any] = []
        self._depth = 0
        self._open = _empty()

    def attach(self) -> None:
        """Put the hooks on; after the source's, whose step hook may run a closure."""
        for name, parameter in self._parameters.items():
            before = functools.partial(self._before_accumulation, name)
            after = functools.partial(self._after_accumulation, name)
            self._hooks.append(parameter.register_hook(before))  # type: ignore[no-untyped-call]
            self._hooks.append(parameter.register_post_accumulate_grad_hook(after))  # type: ignore[no-untyped-call]
        self._step_hooks = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        self._rest()
        for hook in self._step_hooks:
            hook.remove()
        self._step_hooks = []

    def loading(self, load_batch: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`load_batch`, noting what it gives."""

        @functools.wraps(load_batch)
        def noted(dataset: Any, ids: Any) -> Any:
            batch = load_batch(dataset, ids)
            if self._hooks:
                self._open["batches"].append(batch_digest(batch))
            return batch

        return noted

    def note(self, step: int) -> None:
        """A step was made: note the weights after it; after some steps, no more is noted."""
        if self._hooks:
            self._notes[step] = self._open | {"end": _norms(self._parameters)}
            self._open = _empty()
        if len(self._notes) == NOTED:
            self._rest()

    def notes(self) -> Notes:
        """What was noted so far; waits for the device."""
        steps = {}
        for step, open_ in self._notes.items():
            plain = {
                key: {n: float(v) for n, v in value.items()} if isinstance(value, dict) else value
                for key, value in open_.items()
            }
            plain["before"] = {n: v for n, v in plain["before"].items() if v}
            plain["backwards"] = int(max(plain.pop("counts").values(), default=0))
            steps[step] = StepNote(step=step, **plain | {"batches": tuple(plain["batches"])})
        since = {
            name: f"{self._signature[name]} {COMPILED}"
            for name, module in self._model.named_modules()
            if _is_compiled(module) and COMPILED not in self._signature.get(name, COMPILED)
        }
        return Notes(self._signature | since, steps)

    def _rest(self) -> None:
        """Note no more; the optimizer's hooks stay, since it may be calling them."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_accumulation(self, name: str, gradient: Tensor) -> None:
        there = self._parameters[name].grad
        norm = torch.zeros(()) if there is None else _norm(there)
        if name not in self._open["before"]:
            self._open["before"][name] = norm
        else:
            between = self._open["between"]
            between[name] = torch.maximum(between[name], norm) if name in between else norm

    def _after_accumulation(self, name: str, parameter: Tensor) -> None:
        counts = self._open["counts"]
        counts[name] = counts.get(name, 0) + 1
        if parameter.grad is not None:
            self._open["backward"][name] = _norm(parameter.grad)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1 or not self._hooks:
            return
        gradients = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        self._open["taken"] = _norms(gradients)
        self._open["largest"] = {
            n: torch.linalg.vector_norm(_values(g), ord=torch.inf) for n, g in gradients.items()
        }
        self._open["begin"] = _norms(self._parameters)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1


def signature(model: nn.Module) -> dict[str, str]:
    """What a model computes with besides its weights, a line a module, as far as one can see.

    Nothing of a sharded one: `fully_shard` makes classes and hooks of its own.
    """
    if is_sharded(model):
        return {}
    lines: dict[str, str] = {}
    for name, module in model.named_modules():
        parts = [type(module).__name__, f"({module.extra_repr()})"]
        if _is_compiled(module):
            parts.append(COMPILED)
        if "forward" in vars(module):
            parts.append("with a forward of its own")
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        hooks += len(module._backward_hooks) + len(module._backward_pre_hooks)
        if hooks:
            parts.append(f"with {hooks} hook{'s' if hooks > 1 else ''}")
        lines[name] = " ".join(parts)
    for name, parameter in named_parameters(model).items():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            lines[f"{name} "] = "gradient hooks"
    return lines


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def batch_digest(batch: Any) -> str:
    """Digest of a batch's tensors and plain values."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch):
        if isinstance(leaf, Tensor):
            digest.update(tensors_digest({"": leaf}).encode())
        elif hasattr(leaf, "tobytes"):
            digest.update(leaf.tobytes())
        else:
            plain = isinstance(leaf, bool | int | float | str | None)
            digest.update((repr(leaf) if plain else type(leaf).__name__).encode())
    return digest.hexdigest()


def _empty() -> dict[str, Any]:
    return {
        "batches": [],
        "before": {},
        "between": {},
        "counts": {},
        "backward": {},
        "taken": {},
        "largest": {},
        "begin": {},
    }


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _norm(tensor) for name, tensor in tensors.items()}


def _norm(tensor: Tensor) -> Tensor:
    """As a number on its device: nothing waits for it."""
    norm: Tensor = torch.linalg.vector_norm(_values(tensor), dtype=torch.float64)
    return norm


def _values(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    plain = plain.coalesce().values() if plain.is_sparse else plain
    return torch.view_as_real(plain) if plain.is_complex() else plain
