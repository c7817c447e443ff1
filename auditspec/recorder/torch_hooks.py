"""Hear a plain PyTorch loop by hooks of its model and its optimizer.

The loop declares its batches (`loss`, `batch`); the rest is read off: hyperparameters and gradients
right before the optimizer's step, autocast at the passes, random states before and after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import flat_tensors, row_numbers
from auditspec.record.describe_optimizer import options_of
from auditspec.record.state import random_state
from auditspec.record.trajectory import Microbatch
from auditspec.recorder.events import OpenStage, Pass, Source, StepMade, other_autocast


@dataclass
class _Declared:
    """A batch that was declared, of the step that is on its way."""

    dataset: str | None
    ids: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    weight: float
    before: dict[str, bytes]
    """Random state when it was declared."""
    drew: bool = False
    """Whether numbers were drawn since, up to the next batch or the end of the step."""
    loss: Tensor | None = None

    def told(self) -> Pass:
        """As an event."""
        rng = self.before if self.drew else {}
        return Pass(Microbatch(self.dataset, self.ids, self.weight, rng, self.tensors), self.loss)


class TorchHooks(Source):
    """One open stage of a plain loop; made by `Recorder.stage`."""

    def __init__(self, stage: OpenStage) -> None:
        super().__init__(stage)
        parameters = dict(stage.model.named_parameters())
        self._parameters = [*parameters.values()]
        self._optimized = [(n, parameters[n]) for g in stage.header.groups for n in g.parameters]
        self._device = stage.device
        self._step = stage.start
        self._declared: list[_Declared] = []
        self._autocast: tuple[str | None] | None = (stage.header.autocast,) if stage.start else None
        """That of the stage's passes, once one was seen."""
        self._computing = False
        self._depth = 0
        self._step_made: Callable[[tuple[Pass, ...]], StepMade]
        """The step that is being made, but for its passes."""
        self._hooks: list[Any] = []

    def loss(self, ids: Any, *, dataset: Dataset | None = None, weight: float = 1.0) -> Tensor:
        """The objective on rows `ids` of the data set, noted in the record as one microbatch.

        With gradient accumulation, call it once a microbatch with the factor that its loss has in
        the step's gradient; the returned loss has been multiplied by it.

        Raises:
            RecordError: if the recorder was given no `load_batch`, the stage has no data set, or `ids`
                are no row numbers.
        """
        stage = self.stage
        if stage.load_batch is None:
            raise RecordError(
                "the recorder was given no load_batch", "pass it, or declare tensors with run.batch"
            )
        data = self._default if dataset is None else dataset
        if data is None:
            raise RecordError(
                f"stage '{stage.header.id}' has no data set", "pass dataset= to recorder.stage"
            )
        self.batch(ids, dataset=data, weight=weight)
        self._note_autocast()
        self._computing = True  # autocast that the objective enters itself is its own business
        try:
            loss = stage.objective(stage.model, stage.load_batch(data, ids))
        finally:
            self._computing = False
        if self._autocast_now is not None and loss.requires_grad:
            loss.register_hook(self._before_backward)  # type: ignore[no-untyped-call]
        self._declared[-1].loss = loss.detach()
        return loss if weight == 1.0 else loss * weight

    def batch(
        self,
        ids: Any = None,
        *,
        tensors: Tensor | Sequence[Tensor] | None = None,
        dataset: Dataset | None = None,
        weight: float = 1.0,
    ) -> None:
        """Declare the next microbatch: rows of a data set, or the tensors themselves.

        Call it right before the batch is loaded: the random state is taken here.

        Raises:
            RecordError: if neither or both of `ids` and `tensors` are given.
        """
        if (ids is None) == (tensors is None):
            raise RecordError("a batch is either ids or tensors", "pass one of the two")
        name: str | None = None
        rows: tuple[int, ...] = ()
        copies: tuple[Tensor, ...] = ()
        if tensors is None:
            data = self._default if dataset is None else dataset
            if data is None or not any(own is data for own in self.stage.datasets.values()):
                raise RecordError(
                    "ids need a data set that the stage names",
                    "pass dataset= to recorder.stage, and use that one",
                )
            name, rows = data.name, tuple(row_numbers(ids))
        else:
            copies = tuple(t.detach().cpu().clone() for t in flat_tensors(tensors))
        now = self._settle_random_state()
        self._declared.append(_Declared(name, rows, copies, float(weight), now))

    def attach(self) -> None:
        """Put the hooks on."""
        model, optimizer = self.stage.model, self.stage.optimizer
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def _default(self) -> Dataset | None:
        return next(iter(self.stage.datasets.values()), None)

    @property
    def _autocast_now(self) -> str | None:
        return None if self._autocast is None else self._autocast[0]

    @property
    def _place(self) -> str:
        return self.stage.place(self._step)

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not module.training:
            return
        if not self._declared:
            raise RecordError(
                f"{self._place}: a forward pass without a declared batch",
                "call run.loss(ids) or run.batch(ids) before it, or put the model in eval mode",
            )
        if not self._computing:
            self._note_autocast()

    def _note_autocast(self) -> None:
        """Note the autocast around a pass; every pass of a stage has the same.

        Raises:
            RecordError: if it changes inside the stage, or keeps no casts, as a re-run does.
        """
        kind = self._device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        now = None if dtype is None else str(dtype).removeprefix("torch.")
        if self._autocast is None:
            self._autocast = (now,)
        if self._autocast != (now,):
            raise other_autocast(self._place, now, self._autocast[0])
        if now is not None and not torch.is_autocast_cache_enabled():
            raise RecordError(
                f"{self._place}: autocast with cache_enabled=False cannot be recorded",
                "leave cache_enabled as it is by default",
            )

    def _before_backward(self, gradient: Tensor) -> None:
        if torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._place}: backward() inside autocast cannot be repeated exactly",
                "leave autocast before loss.backward(), as torch advises",
            )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:  # a subclass's step calls its parent's: torch runs the hooks for both
            return
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            raise RecordError(
                f"{self._place}: optimizer.step(closure) cannot be recorded",
                "call step() without a closure",
            )
        if (
            getattr(optimizer, "grad_scale", None) is not None
            or getattr(optimizer, "found_inf", None) is not None
        ):
            raise RecordError(
                f"{self._place}: a gradient scaler cannot be recorded yet",
                "train without GradScaler",
            )
        if self._autocast_now is not None and torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._place}: an optimizer step inside autocast: later passes would use casts of "
                "the weights before it",
                "leave autocast before optimizer.step()",
            )
        norm = None
        if self.stage.header.clip_norm is not None:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self._step_made = partial(
            StepMade,
            groups=tuple(options_of(group) for group in optimizer.param_groups),
            without_gradient=tuple(name for name, p in self._optimized if p.grad is None),
            gradient_norm=norm,
            autocast=self._autocast_now,
        )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._settle_random_state()
        passes = tuple(declared.told() for declared in self._declared)
        self._declared, self._step = [], self._step + 1
        self.stage.tell(self._step_made(passes))

    def _settle_random_state(self) -> dict[str, bytes]:
        """See whether the last declared batch drew random numbers; give the present state.

        What lies between two batches, or a batch and the end of its step, is one pass through the model,
        the update, and whatever the loop draws itself, so that at most a state too many is kept.
        """
        states = random_state(self._device)
        now = {kind: state.numpy().tobytes() for kind, state in states.items()}
        if self._declared:
            self._declared[-1].drew = now != self._declared[-1].before
        return now
