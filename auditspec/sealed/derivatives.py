"""Derivatives of what the audited code gave, each a question to its process.

A call under `torch.enable_grad` can be differentiated twice. Its gradients are asked for when they are needed:

    g_i = sum_o  c_o  d out_o / d theta_i              a question about the call (`_Outputs`)
    sum_i v_i d g_i / d (c, theta)                     a question about those gradients (`_Gradients`)
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from auditspec.engine.batched_gradient import Batched
from auditspec.sealed.ambience import modes
from auditspec.sealed.forms import checked, like, present

if TYPE_CHECKING:
    from auditspec.sealed.functions import Code, Function


class Call:
    """A call whose graph the process keeps as long as somebody here may ask for it."""

    def __init__(self, code: Code, number: int, function: int = 0) -> None:
        self.code = code
        self.number = number
        self.function = function
        self.ahead: tuple[float | None, list[Any]] | None = None
        """Gradients that came with the call, for a cotangent that was expected."""
        weakref.finalize(self, code.client.release, number)


def differentiable(call: Call, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """A call's outputs, with their derivatives by the inputs."""
    return list(_apply(_Outputs, call, len(outputs), *outputs, *inputs))


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Outputs(torch.autograd.Function):
    """What a call gave, with its derivatives by the inputs (parameters, and what was added to an output)."""

    @staticmethod
    def forward(ctx: Any, call: Call, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs as they are."""
        ctx.call, ctx.count, ctx.inputs = call, count, tensors[count:]
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Gradients by the inputs."""
        mask = [c is not None for c in cotangents]
        given = [c for c in cotangents if c is not None]
        expected = ctx.call.code.expected
        if torch.is_grad_enabled():
            expected.pop(ctx.call.function, None)
            gradients = _apply(_Gradients, ctx.call, mask, *given, *ctx.inputs)
        else:
            if ctx.count == 1 and given and given[0].dim() == 0:
                expected[ctx.call.function] = float(given[0])
            gradients = _pulled(ctx.call, mask, given, ctx.inputs, create=False)[0]
        return None, None, *([None] * ctx.count), *gradients


class _Gradients(torch.autograd.Function):
    """Gradients of a call, with their derivatives by the cotangents and the inputs."""

    @staticmethod
    def forward(ctx: Any, call: Call, mask: list[bool], *tensors: Tensor) -> Any:
        """The gradients; None for an input that the outputs do not depend on."""
        count = sum(mask)
        gradients, answer = _pulled(call, mask, tensors[:count], tensors[count:], create=True)
        ctx.pull, ctx.like = Call(call.code, int(answer["pull"])), tensors
        ctx.set_materialize_grads(False)
        smooth = [bool(s) for s in answer["smooth"]]
        flat = [g for g, s in zip(gradients, smooth, strict=True) if g is not None and not s]
        ctx.mark_non_differentiable(*flat)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        """Their gradients; not differentiable once more."""
        code = ctx.pull.code
        second = code.ask("second", pull=ctx.pull.number, directions=list(directions))
        with checked("a second derivative"):
            return None, None, *(like(s, t) for s, t in zip(second, ctx.like, strict=True))


def _pulled(
    call: Call,
    mask: Sequence[bool],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    create: bool,
) -> tuple[list[Tensor | None], Any]:
    ahead = call.ahead
    if ahead is not None and not create and float(cotangents[0]) == ahead[0]:
        with checked("a gradient"):
            return [like(g, t) for g, t in zip(ahead[1], inputs, strict=True)], {}
    rest = iter(cotangents)
    every = [next(rest).detach() if there else None for there in mask]
    answer = call.code.ask("pullback", call=call.number, cotangents=every, create=create)
    with checked("a gradient"):
        gradients = [like(g, t) for g, t in zip(answer["gradients"], inputs, strict=True)]
        return gradients, answer


class RemoteBatched:
    """The batched gradient of an objective of the code."""

    def __init__(self, function: Function, model: Any, trained: list[str], number: int) -> None:
        self._code, self._entry = function.code, function.entry
        self._model, self._trained, self._number = model, trained, number
        weakref.finalize(self, self._code.client.release, number)

    def __call__(
        self, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor], weight: float, batch: Any
    ) -> Batched:
        """One pass, as `BatchedGradient` says."""
        answer = self._code.ask(
            "batched",
            number=self._number,
            models=[self._code.state_of(self._model)],
            modes=modes(),
            theta={n: t.detach() for n, t in theta.items()},
            buffers=dict(buffers),
            weight=weight,
            batch=batch,
        )
        with checked(self._entry):
            return Batched(
                {n: like(answer["gradients"][n], theta[n]) for n in self._trained},
                {n: present(like(answer["buffers"][n], b)) for n, b in buffers.items()},
                bool(answer["first_use"]),
                bool(answer["overhead_bound"]),
            )
