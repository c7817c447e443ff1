"""The gradients of several parameter vectors at once, on one minibatch: `torch.vmap` of the objective, taped.

    g = vmap(grad loss)(theta)          theta [n, *shape], one minibatch, the same random numbers

From the second minibatch of its shapes on, a gradient is run from a `Tape`. Nothing here says whether vmap gives
what the ordinary gradient would be: that is for its caller to see.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auditspec.artifacts.remote import RemoteFunction
from auditspec.engine.trace import NotTapedError, Outputs, Tape, form
from auditspec.errors import AuditspecError
from auditspec.messages import Message, message
from auditspec.record.state import device_of, random_state, set_random_state

SMALL = 4096
"""Numbers that an operation writes on average, up to which calling it outweighs computing it."""
_TAPES = 8
"""Tapes kept at once: minibatches of more different shapes than that run untaped."""


class NotVectorizedError(Exception):
    """These parameters must be run one by one; `reason` says why."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason.code)
        self.reason = reason


@dataclass(frozen=True)
class Batched:
    """What one batched pass gave."""

    gradients: dict[str, Tensor | None]
    """[n, *shape] per trained parameter; None where the loss does not reach it."""
    buffers: dict[str, Tensor]
    """[n, *shape] per buffer, after the pass."""
    first_use: bool
    """Whether a tape was run for the first time."""
    overhead_bound: bool
    """Whether calling its operations takes longer than their arithmetic, by their shapes alone."""


class BatchedGradient(Protocol):
    """(theta, buffers, weight, batch) -> gradients of the weighted loss."""

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        weight: float,
        batch: Any,
    ) -> Batched:
        """One pass.

        Raises:
            NotVectorizedError: if vmap cannot take the objective.
        """


def batched_gradient(
    objective: Any, model: nn.Module, trained: Sequence[str], buffers: Sequence[str]
) -> BatchedGradient:
    """The batched gradient of an objective.

    Args:
        objective: (model, batch) -> scalar loss.
        model: into which parameters are put; its other buffers count as they are.
        trained: parameters to differentiate by.
        buffers: those that differ between the parameter vectors, or that a pass changes.
    """
    if isinstance(objective, RemoteFunction):
        batched: BatchedGradient = objective.batched(model, trained, buffers)
        return batched
    return _Here(objective, model, trained, buffers)


class _Here:
    """The batched gradient of a function of this process."""

    def __init__(
        self, objective: Any, model: nn.Module, trained: Sequence[str], buffers: Sequence[str]
    ) -> None:
        self._objective = _Objective(model, objective, [*buffers])
        self._trained = [*trained]
        self._device = device_of(model)
        self._weights: dict[float, Tensor] = {}
        self._tapes: dict[Hashable, Tape | None] = {}
        self._used: set[Hashable] = set()

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        weight: float,
        batch: Any,
    ) -> Batched:
        """One pass, as `BatchedGradient` says."""
        leaves, spec = pytree.tree_flatten(batch)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if weight not in self._weights:
            self._weights[weight] = torch.tensor(weight, dtype=torch.float64, device=self._device)
        inputs = [*theta.values(), *buffers.values(), self._weights[weight], *tensors]

        def compute(*inputs: Tensor) -> Outputs:
            given = list(inputs[-len(tensors) :]) if tensors else []
            filled = [given.pop(0) if isinstance(x, Tensor) else x for x in leaves]
            return self._compute([*theta], [*buffers], inputs, pytree.tree_unflatten(filled, spec))

        first_use = False
        try:
            key = (spec, *(form(x) for x in leaves))
            tape = self._tapes.get(key)
            if tape is not None:
                outputs = tape(inputs)
                first_use = key not in self._used
                self._used.add(key)
            elif key in self._tapes or len(self._tapes) >= _TAPES:
                outputs = compute(*inputs)
            else:
                outputs, self._tapes[key] = self._record(compute, inputs, buffers)
        except (AuditspecError, NotVectorizedError):
            raise
        except Exception as error:  # whatever the training code raises under vmap
            why = str(error).strip().partition("\n")[0]
            raise NotVectorizedError(message("vmap-refuses", error=why)) from error
        count = len(self._trained)
        after = dict(buffers)
        for name, value in zip(buffers, outputs[count:], strict=True):
            if value is not None:
                after[name] = value
        gradients = dict(zip(self._trained, outputs[:count], strict=True))
        return Batched(gradients, after, first_use, self._overhead_bound(theta))

    def _overhead_bound(self, theta: Mapping[str, Tensor]) -> bool:
        tape = next(iter(self._tapes.values()), None)
        if tape is None:
            return False  # without a tape, vmap costs more than it saves
        return tape.elements <= SMALL * tape.operations * len(next(iter(theta.values())))

    def _record(
        self, compute: Any, inputs: list[Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[Outputs, Tape | None]:
        before = {n: b.clone() for n, b in buffers.items()}
        random = random_state(self._device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap's, of operations that it runs one by one
            try:
                return Tape.record(compute, inputs)
            except NotTapedError:  # the objective may still be one that vmap takes
                for name, b in before.items():
                    buffers[name].copy_(b)
                set_random_state(random, self._device)
                return compute(*inputs), None

    def _compute(
        self, parameters: list[str], buffers: list[str], inputs: tuple[Tensor, ...], batch: Any
    ) -> Outputs:
        """Gradients of the trained parameters, then the buffers."""
        with torch.enable_grad():
            stacked = {
                f"model.{name}": x.detach().requires_grad_(name in self._trained)
                for name, x in zip(parameters, inputs, strict=False)
            }
            rest = inputs[len(parameters) :]
            held = {f"model.{n}": b for n, b in zip(buffers, rest, strict=False)}
            weight = rest[len(buffers)]

            def one(state: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
                outcome: tuple[Tensor, list[Tensor]] = torch.func.functional_call(
                    self._objective, state, (batch,)
                )
                return outcome

            losses, after = torch.vmap(one, randomness="same")({**stacked, **held})
            gradients = torch.autograd.grad(
                (losses * weight).sum(),
                [stacked[f"model.{name}"] for name in self._trained],
                allow_unused=True,
            )
        return [*gradients, *(b.detach() for b in after)]


class _Objective(nn.Module):
    """The objective as a module, so that `functional_call` can put parameters into its model."""

    def __init__(self, model: nn.Module, objective: Any, buffers: list[str]) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._buffer_names = buffers

    def forward(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the buffers after it."""
        loss = self._objective(self.model, batch)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise NotVectorizedError(message("no-scalar-objective"))
        after = dict(self.model.named_buffers())
        return loss, [after[name] for name in self._buffer_names]
