"""Hear a plain PyTorch loop by hooks of its model and its optimizer.

The loop declares its batches (`loss`, `batch`); the rest is read off: hyperparameters and gradients
right before the optimizer's step, the factor of a loss at its backward pass, autocast at the passes,
random states before and after them, a gradient scaler when it makes its step or skips it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.batches import copied
from auditspec.record.describe import row_numbers
from auditspec.record.describe_optimizer import inner_optimizer, options_of
from auditspec.record.format import Autocast
from auditspec.record.generators import Generators
from auditspec.record.trajectory import Microbatch
from auditspec.recorder.events import OpenStage, Pass, Source, StepMade, other_autocast
from auditspec.recorder.states import part, whole

ROUNDING = 1e-6
"""Relative difference that float32 explains between a declared weight and the one that was used."""


@dataclass
class _Declared:
    """A batch that was declared, of the step that is on its way."""

    microbatch: Microbatch
    before: Generators
    """The random generators when it was declared."""
    rng: dict[str, bytes] | None = None
    """Those that were drawn from up to the next batch or the end of the step, as they were before."""
    loss: Tensor | None = None
    differentiated: bool | None = None
    """Whether its loss was; None where the loss is not seen, or takes no gradient."""
    factor: Tensor | None = None
    """Of the loss, in what was differentiated."""
    skipped: bool = False
    """Whether its step was skipped."""
    scale: float = 1.0
    """That a gradient scaler gave the losses of its step."""

    def told(self) -> Pass:
        """As an event."""
        declared = self.microbatch.weight
        weight = declared if self.factor is None else float(self.factor) / self.scale
        if self.skipped or self.differentiated is False:
            weight = 0.0
        elif math.isclose(weight, declared, rel_tol=ROUNDING):
            weight = declared  # as it was said, without the rounding of the gradient's precision
        pass_made = Microbatch(
            dataset=self.microbatch.dataset,
            ids=self.microbatch.ids,
            weight=weight,
            rng=self.rng or {},
            batch=self.microbatch.batch,
            scale=self.scale if weight else 1.0,
        )
        return Pass(pass_made, self.loss)


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
        self._autocast: tuple[Autocast | None] | None = (
            (stage.header.autocast,) if stage.start else None
        )
        """That of the stage's passes, once one was seen."""
        self._computing = False
        self._depth = 0
        self._step_made: Callable[[tuple[Pass, ...]], StepMade] | None
        """The step that is being made, but for its passes; None for one that is skipped."""
        self._closure: _ClosureRun | None = None
        """That of the step that is being made, if it has one."""
        self._hooks: list[Any] = []
        self._leaves: dict[nn.Module, Any] = {}

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
        self._note_autocast("objective")
        self._computing = True  # autocast that the objective enters itself is its own business
        try:
            loss = stage.objective(stage.called, stage.load_batch(data, ids))
        finally:
            self._computing = False
        self.watch(loss)
        return loss if weight == 1.0 else loss * weight

    def batch(
        self,
        ids: Any = None,
        *,
        tensors: Any = None,
        dataset: Dataset | None = None,
        weight: float = 1.0,
    ) -> None:
        """Declare the next microbatch: rows of a data set, or the batch itself, or both.

        Call it right before the batch is loaded: the random state is taken here. Where the batch itself
        is given, it is what a re-run trains on, and `ids` say which rows it was made of.

        Args:
            ids: row numbers.
            tensors: a tensor, or nested dicts, lists, and tuples of tensors and plain values.
            dataset: that the ids point into; None: the stage's first.
            weight: the factor of its loss in the step's gradient.

        Raises:
            RecordError: if neither is given, or they cannot be recorded.
        """
        if ids is None and tensors is None:
            raise RecordError("a batch without ids and tensors", "pass one of the two, or both")
        name: str | None = None
        rows: tuple[int, ...] = ()
        if ids is not None:
            data = self._default if dataset is None else dataset
            if data is None or not any(own is data for own in self.stage.datasets.values()):
                raise RecordError(
                    "ids need a data set that the stage names",
                    "pass dataset= to recorder.stage, and use that one",
                )
            name, rows = data.name, tuple(row_numbers(ids))
        batch = None if tensors is None else copied(tensors)
        now = self._settle_random_state()
        self._declared.append(_Declared(Microbatch(name, rows, float(weight), {}, batch), now))

    def watch(self, loss: Tensor) -> None:
        """Tell the loss of the batch that was declared last; `loss` does so itself.

        It is then recorded, with the factor by which it went into the gradient, whatever the loop or
        its trainer multiplies or divides it by.
        """
        declared = self._declared[-1]
        declared.loss = loss.detach()
        if not loss.requires_grad:
            return
        declared.differentiated = False

        def seen(gradient: Tensor) -> None:
            self._before_backward()
            declared.differentiated, declared.factor = True, gradient.detach()

        loss.register_hook(seen)  # type: ignore[no-untyped-call]

    def attach(self) -> None:
        """Put the hooks on."""
        model, optimizer = self.stage.model, self.stage.optimizer
        scaler_step = torch.amp.GradScaler.step
        source = self

        def step(scaler: Any, given: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if inner_optimizer(given) is not optimizer:
                return scaler_step(scaler, given, *args, **kwargs)
            return source._scaled_step(scaler, partial(scaler_step, scaler, given, *args, **kwargs))

        scaling = patch.object(torch.amp.GradScaler, "step", step)
        scaling.start()
        self._leaves = {
            leaf: leaf.register_forward_pre_hook(self._in_forward)
            for leaf in model.modules()
            if next(leaf.children(), None) is None
        }
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *self._leaves.values(),
            _Stopped(scaling),
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
    def _autocast_now(self) -> Autocast | None:
        return None if self._autocast is None else self._autocast[0]

    @property
    def _place(self) -> str:
        return self.stage.place(self._step)

    # --- passes -----------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not module.training:
            return
        if not self._declared:
            raise RecordError(
                f"{self._place}: a forward pass without a declared batch",
                "call run.loss(ids) or run.batch(ids) before it, or put the model in eval mode",
            )
        self.stage.passing()
        if not self._computing:
            self._note_autocast("objective")

    def _in_forward(self, leaf: nn.Module, args: Any) -> None:
        """See the autocast that a library patched into the model's forward; the first leaf that is
        called tells it of every pass.
        """
        if not leaf.training or not self._declared:
            return
        for other in [other for other in self._leaves if other is not leaf]:
            self._leaves.pop(other).remove()
        if self._autocast == (None,) and "forward" in vars(self.stage.model):
            now = self._entered("forward")
            if now is not None and self._step == self.stage.start:
                self._autocast = (now,)

    def _entered(self, around: Any) -> Autocast | None:
        """The autocast under which this moment's operations run."""
        kind = self._device.type
        if not torch.is_autocast_enabled(kind):
            return None
        dtype: Any = str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
        return Autocast(dtype=dtype, around=around, cache=torch.is_autocast_cache_enabled())

    def _note_autocast(self, around: Any) -> None:
        """Note the autocast around a pass; every pass of a stage has the same.

        Raises:
            RecordError: if it changes inside the stage.
        """
        now = self._entered(around)
        if self._autocast is None:
            self._autocast = (now,)
        inside = self._autocast[0] is not None and self._autocast[0].around == "forward"
        if self._autocast != (now,) and not (inside and now is None):
            raise other_autocast(self._place, now, self._autocast[0])

    def _before_backward(self) -> None:
        if self._autocast_now is not None and torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._place}: backward() inside autocast cannot be repeated exactly",
                "leave autocast before loss.backward(), as torch advises",
            )

    # --- steps ------------------------------------------------------------------------------------

    def _scaled_step(self, scaler: Any, make: Callable[[], Any]) -> Any:
        """A step through a gradient scaler, which may skip it; the next one then tells of its passes."""
        self._scaled_by(float(scaler.get_scale()))
        step = self._step
        result = make()
        if self._step == step:
            self._skip()
        return result

    def _scaled_by(self, scale: float) -> None:
        for declared in self._declared:
            if not declared.skipped:
                declared.scale = scale

    def _skip(self) -> None:
        if all(declared.skipped for declared in self._declared):
            return
        self._settle_random_state()
        for declared in self._declared:
            declared.skipped = True
        self.stage.skip()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        if self._depth > 1:  # a subclass's step calls its parent's: torch runs the hooks for both
            return None
        changed = self._without_closure(optimizer, args, kwargs)
        if self._autocast_now is not None and torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._place}: an optimizer step inside autocast: later passes would use casts of "
                "the weights before it",
                "leave autocast before optimizer.step()",
            )
        scale, overflow = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        if scale is not None:  # a fused optimizer divides by it, and skips, itself
            self._scaled_by(float(scale))
        if overflow is not None and float(overflow) > 0:
            self._step_made = None
            return changed
        norm = None
        if self.stage.header.clip_norm is not None:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = whole(torch.nn.utils.get_total_norm(gradients))
        self._step_made = partial(
            StepMade,
            groups=tuple(options_of(group) for group in optimizer.param_groups),
            without_gradient=tuple(name for name, p in self._optimized if p.grad is None),
            gradient_norm=norm,
            autocast=self._autocast_now,
        )
        return changed

    def _without_closure(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Run the closure of a step now, so that its gradients are there; its value is handed on.

        The classes of torch.optim run it once, first of all; another must be seen to do so.
        """
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._closure = None
        if closure is None:
            return None
        with torch.enable_grad():
            value = closure()
        self._closure = _ClosureRun(optimizer, value, self._place)
        given = {key: option for key, option in kwargs.items() if key != "closure"}
        return (args[0], self._closure, *args[2:]), given

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        if self._closure is not None:
            self._closure.finish()
        if self._step_made is None:
            self._skip()
            return
        self._settle_random_state()
        passes = tuple(declared.told() for declared in self._declared)
        self._declared, self._step = [], self._step + 1
        self.stage.tell(self._step_made(passes))

    def _settle_random_state(self) -> Generators:
        """See what the last declared batch drew random numbers from; give the present states.

        What lies between two batches, or a batch and the end of its step, is one pass through the model,
        the update, and whatever the loop draws itself, so that at most a state too many is kept.
        """
        now = Generators.now(self._device)
        if self._declared and self._declared[-1].rng is None:
            self._declared[-1].rng = self._declared[-1].before.drawn_from(now)
        return now


class _ClosureRun:
    """Stands for the closure of a step, which was run already: to be called once, before anything is changed.

    Args:
        optimizer: that calls it.
        value: of the closure.
        place: of the step, for messages.
    """

    def __init__(self, optimizer: Optimizer, value: Any, place: str) -> None:
        self._optimizer = optimizer
        self._value = value
        self._place = place
        self._calls = 0
        self._before = self._norms()

    def __call__(self) -> Any:
        """The closure's value.

        Raises:
            RecordError: if it is called again, or weights or gradients were changed before.
        """
        self._calls += 1
        if self._calls > 1:
            raise self._refused("runs its closure more than once")
        if self._norms() != self._before:
            raise self._refused("changes weights or gradients before it runs its closure")
        return self._value

    def finish(self) -> None:
        """The step was made.

        Raises:
            RecordError: if it did not call the closure.
        """
        if not self._calls:
            raise self._refused("does not run its closure")

    def _norms(self) -> list[float | None]:
        """Of every weight and gradient, in float64: any change in place is seen."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        tensors = [t for p in parameters for t in (p.detach(), p.grad)]
        return [
            None if t is None else float(torch.linalg.vector_norm(part(t), dtype=torch.float64))
            for t in tensors
        ]

    def _refused(self, what: str) -> RecordError:
        return RecordError(
            f"{self._place}: {type(self._optimizer).__name__} {what}, which cannot be recorded",
            "use an optimizer that runs its closure once and first of all, or call step() without one",
        )


@dataclass
class _Stopped:
    """A patch that ends as a hook does."""

    patch: Any

    def remove(self) -> None:
        """End it."""
        self.patch.stop()
