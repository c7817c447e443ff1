"""One open stage of a recorded run: declared batches, and the hooks that note every step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import flat_tensors, row_numbers
from auditspec.record.describe_optimizer import Watch, check_moments, options_of
from auditspec.record.format import StageHeader
from auditspec.record.state import State, capture, device_of, frozen_in, random_state
from auditspec.recorder.writer import StageWriter


class StageRecorder:
    """One open stage; made by `Recorder.stage`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Callable[[nn.Module, Any], Tensor],
        load_batch: Callable[[Any, Any], Any] | None,
        *,
        header: StageHeader,
        datasets: dict[str, Dataset],
        writer: StageWriter,
        start: int,
        changed: Callable[..., None],
        generators: dict[str, Tensor],
    ) -> None:
        self.header = header
        self.optimizer = optimizer
        self.objective = objective
        self.datasets = datasets
        self._default = next(iter(datasets.values()), None)
        self._model = model
        self._parameters = list(model.parameters())
        named = dict(model.named_parameters())
        self._held = [(n, named[n]) for group in header.groups for n in group.parameters]
        self._device = device_of(model)
        self._load_batch = load_batch
        self._writer = writer
        self._start = start
        self._step = start
        self._batches: list[dict[str, Any]] = []
        self._declared = False
        self._last: dict[str, Any] | None = None
        self._rng: dict[str, bytes] = {}
        self._loss: list[tuple[float, Tensor]] = []
        self._hooks: list[Any] = []
        self._watch = Watch(optimizer) if header.optimizer_code else None
        self._depth = 0
        self._changed = changed
        self._generators = generators
        self._autocast: str | None = header.autocast
        self._autocast_known = start > 0
        self._computing = False
        self._began = 0.0

    @property
    def steps(self) -> range:
        """The steps that are still to be made; empty for a stage that the record holds whole."""
        return range(self._start, self.header.steps)

    def loss(self, ids: Any, *, dataset: Dataset | None = None, weight: float = 1.0) -> Tensor:
        """The objective on rows `ids` of the data set, noted in the record as one microbatch.

        With gradient accumulation, call it once a microbatch with the factor that its loss has in
        the step's gradient; the returned loss has been multiplied by it.
        """
        if self._load_batch is None:
            raise RecordError(
                "the recorder was given no load_batch", "pass it, or declare tensors with run.batch"
            )
        data = self._default if dataset is None else dataset
        if data is None:
            raise RecordError(
                f"stage '{self.header.id}' has no data set", "pass dataset= to recorder.stage"
            )
        self.batch(ids, dataset=data, weight=weight)
        self._note_autocast()
        self._computing = True  # autocast that the objective enters itself is its own business
        try:
            loss = self.objective(self._model, self._load_batch(data, ids))
        finally:
            self._computing = False
        if self._autocast is not None and loss.requires_grad:
            loss.register_hook(self._before_backward)  # type: ignore[no-untyped-call]
        self._loss.append((weight, loss.detach()))
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
        entry: dict[str, Any] = {
            "dataset": None,
            "ids": None,
            "tensors": None,
            "weight": float(weight),
        }
        if tensors is None:
            data = self._default if dataset is None else dataset
            if data is None or not any(held is data for held in self.datasets.values()):
                raise RecordError(
                    "ids need a data set that the stage names",
                    "pass dataset= to recorder.stage, and use that one",
                )
            entry |= {"dataset": data.name, "ids": row_numbers(ids)}
        else:
            entry["tensors"] = self._writer.add_tensors(flat_tensors(tensors))
        self._settle_random_state()
        self._batches.append(entry)
        self._last = entry
        self._declared = True

    def begin(self) -> None:
        """Keep the first state, forecast the disk, and attach the hooks."""
        self._writer.open(self._start)
        if self._start == 0:
            self._forecast()
            self._keep()
        else:
            self._kept = capture(self._model, self.optimizer)
        self._hooks = [
            self._model.register_forward_pre_hook(self._before_forward),
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self._began = time.perf_counter()

    def end(self) -> State:
        """Write what is left of the open segment; give the last state.

        Raises:
            RecordError: if the stage made another number of steps than declared.
        """
        if self._step != self.header.steps:
            raise RecordError(
                f"stage '{self.header.id}' ended after {self._step} of {self.header.steps} steps",
                "declare the number of steps that the loop makes",
            )
        self._refuse_thawing()
        self._settle_random_state()
        self._writer.flush(self._step)
        return self._kept

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not module.training:
            return
        if not self._declared:
            raise RecordError(
                f"{self._where}: a forward pass without a declared batch",
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
        found = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        now = None if found is None else str(found).removeprefix("torch.")
        if not self._autocast_known:
            if now != self._autocast:
                self._changed(autocast=now)
            self._autocast, self._autocast_known = now, True
        if now != self._autocast:
            raise RecordError(
                f"{self._where}: autocast to {now or 'nothing'}, before to "
                f"{self._autocast or 'nothing'}",
                "train a whole stage under one precision of autocast",
            )
        if now is not None and not torch.is_autocast_cache_enabled():
            raise RecordError(
                f"{self._where}: autocast with cache_enabled=False cannot be recorded",
                "leave cache_enabled as it is by default",
            )

    def _before_backward(self, gradient: Tensor) -> None:
        if torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._where}: backward() inside autocast cannot be repeated exactly",
                "leave autocast before loss.backward(), as torch advises",
            )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:  # a subclass's step calls its parent's: torch runs the hooks for both
            return
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            raise RecordError(
                f"{self._where}: optimizer.step(closure) cannot be recorded",
                "call step() without a closure",
            )
        if (
            getattr(optimizer, "grad_scale", None) is not None
            or getattr(optimizer, "found_inf", None) is not None
        ):
            raise RecordError(
                f"{self._where}: a gradient scaler cannot be recorded yet",
                "train without GradScaler",
            )
        if self._autocast is not None and torch.is_autocast_enabled(self._device.type):
            raise RecordError(
                f"{self._where}: an optimizer step inside autocast: later passes would use casts of "
                "the weights before it",
                "leave autocast before optimizer.step()",
            )
        if not self._model.training:
            self._refuse_eval()
        if not self._batches:
            raise RecordError(
                f"{self._where}: an optimizer step without a declared batch",
                "call run.loss(ids) or run.batch(ids)",
            )
        if self._step >= self.header.steps:
            raise RecordError(
                f"{self._where}: more steps than the {self.header.steps} declared",
                "declare as many as are made",
            )
        norm = None if self.header.clip_norm is None else self._clipped_norm()
        groups = [options_of(group) for group in optimizer.param_groups]
        if self._watch is not None:
            self._watch.before(groups)
        self._writer.add_step(
            self._step,
            groups=groups,
            batches=self._batches,
            loss=self._loss,
            grad_norm=norm,
            without_gradient=[name for name, p in self._held if p.grad is None],
        )
        self._batches, self._loss, self._declared = [], [], False

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        now = time.perf_counter()
        if self._watch is not None:
            self._watch.after(self._where)
        self._writer.finish_step(now - self._began)
        self._step += 1
        if self._writer.wants_state(self._step, last=self.header.steps):
            self._keep()
        if self._writer.segment_ends(self._step):
            self._refuse_eval()
            self._refuse_thawing()
            self._settle_random_state()
            self._writer.flush(self._step)
        self._began = time.perf_counter()

    def _refuse_thawing(self) -> None:
        if (now := frozen_in(self._model)) != self.header.frozen:
            odd = sorted(set(now) ^ set(self.header.frozen))
            raise RecordError(
                f"{self._where}: parameters were frozen or freed inside the stage: "
                f"{', '.join(odd[:3])}",
                "freeze and free parameters between stages",
            )

    def _refuse_eval(self) -> None:
        idle = [name or "the model" for name, m in self._model.named_modules() if not m.training]
        if idle:
            raise RecordError(
                f"{self._where}: {idle[0]} is in eval mode; a re-run trains in train mode",
                "call model.train() before training goes on",
            )

    @property
    def _where(self) -> str:
        return f"stage '{self.header.id}', step {self._step}"

    def _clipped_norm(self) -> Tensor:
        """The gradient's norm, which the declared clipping must have bounded."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm, limit = torch.nn.utils.get_total_norm(gradients), self.header.clip_norm
        if limit is not None and float(norm) > limit * 1.001:
            raise RecordError(
                f"{self._where}: gradient norm {float(norm):.4g} above the declared clip_norm {limit:g}",
                "clip with torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm) before the step",
            )
        return norm

    def _settle_random_state(self) -> None:
        """Keep the random state before the last declared batch only if something was drawn since.

        What lies between two batches is one pass through the model and whatever the loop draws
        itself, so that at most a state too many is kept.
        """
        now = {kind: s.numpy().tobytes() for kind, s in random_state(self._device).items()}
        if self._last is not None and now != self._rng:
            for kind, before in self._rng.items():
                self._last[f"rng_{kind}"] = before
        self._last, self._rng = None, now

    def _keep(self) -> None:
        self._kept = capture(self._model, self.optimizer, random_state(self._device))
        if self._step == 0:
            self._kept = replace(self._kept, generators=self._generators)
        if self._watch is not None:
            check_moments(self._kept.optimizer_state)
        self._writer.write_state(self._kept, self.header.id, self._step)

    def _forecast(self) -> None:
        """Refuse a stage for which the disk is too small.

        A state takes the parameters and buffers once, and the optimizer's moments up to twice.
        """
        size = sum(
            t.numel() * t.element_size()
            for t in [*self._model.parameters(), *self._model.buffers()]
        )
        need = 3 * size * self._writer.states_of(self.header.steps)
        free = shutil.disk_usage(self._writer.folder).free
        if need > free:
            raise RecordError(
                f"stage '{self.header.id}' may need {need / 1e6:,.0f} MB for its states; {free / 1e6:,.0f} MB are free",
                "free disk space, or record fewer states with a larger `every`",
            )
