"""One open stage of a recorded run: what its source tells, held against what was declared, and written."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.errors import RecordError
from auditspec.record.describe_optimizer import Watch, check_moments
from auditspec.record.format import StageHeader
from auditspec.record.state import State, frozen_in, named_buffers
from auditspec.recorder.events import Source, StepMade, other_autocast
from auditspec.recorder.writer import StageWriter


class StageRecorder:
    """Writes down one stage.

    Args:
        header: of the stage, as declared.
        model: the model in training.
        optimizer: its optimizer.
        writer: of the stage's folder.
        start: first step that is still to be made.
        change: told of keys of the header that the steps show: the autocast, and another number of steps
            where some were skipped.
    """

    def __init__(
        self,
        header: StageHeader,
        model: nn.Module,
        optimizer: Optimizer,
        writer: StageWriter,
        start: int,
        change: Callable[..., None],
    ) -> None:
        self.header = header
        self._model = model
        self._writer = writer
        self._start = start
        self._step = start
        self._watch = Watch(optimizer) if header.optimizer_code else None
        self._autocast = header.autocast
        self._change = change
        self.skipped, self._skipped_last = 0, False
        """Planned steps that were not made."""
        self._last_kept = start
        self._source: Source
        self._last_state: State
        self._began = 0.0

    def begin(self, source: Source, generators: dict[str, Tensor]) -> None:
        """Forecast the disk, and keep the first state.

        Args:
            source: of the stage, asked for states.
            generators: that belong to its first state.

        Raises:
            RecordError: if the disk is too small, or the optimizer keeps what no file can hold.
        """
        self._source = source
        self._writer.open(self._start)
        if self._start == 0:
            self._forecast()
            self._keep(generators)
        else:
            self._last_state = source.state()
        self._first_buffers = self._last_state.buffers
        self._began = time.perf_counter()

    def hear(self, event: StepMade) -> None:
        """Write down a step that was made.

        Raises:
            RecordError: if it is not a step that was declared, or a re-run would make another.
        """
        seconds = time.perf_counter() - self._began
        self._check(event)
        if self._step == 0 and event.autocast != self._autocast:
            self._change(autocast=event.autocast)
            self._autocast = event.autocast
        if event.autocast != self._autocast:
            raise other_autocast(self._place, event.autocast, self._autocast)
        if self._watch is not None:
            self._watch.check(event.groups, self._place)
        self._writer.add_step(self._step, event, seconds)
        self._step, self._skipped_last = self._step + 1, False
        if self._writer.wants_state(self._step, last=self.header.steps):
            self._keep({})
        if self._writer.segment_ends(self._step):
            self._refuse_eval()
            self._refuse_thawing()
            self._writer.flush(self._step)
        self._began = time.perf_counter()

    def skip(self) -> None:
        """Count a step that was not made."""
        self.skipped, self._skipped_last = self.skipped + 1, True

    def stop(self, missing: int) -> None:
        """Expect so many steps less: the run stopped before it made them."""
        self.skipped += missing

    def end(self) -> State:
        """Write what is left of the open segment; give the last state.

        Raises:
            RecordError: if the stage made another number of steps than declared.
        """
        if self._step + self.skipped != self.header.steps:
            skipped = f", and {self.skipped} skipped" if self.skipped else ""
            raise RecordError(
                f"stage '{self.header.id}' ended after {self._step} of {self.header.steps} steps{skipped}",
                "declare the number of steps that the loop makes",
            )
        if self.skipped:
            self._end_early()
        self._refuse_thawing()
        self._writer.flush(self._step)
        return self._last_state

    @property
    def made(self) -> int:
        """Steps that were told so far."""
        return self._step

    @property
    def _place(self) -> str:
        return f"stage '{self.header.id}', step {self._step}"

    def _check(self, event: StepMade) -> None:
        """Hold a step against what was declared.

        Raises:
            RecordError: if it is no step of the stage.
        """
        if not self._model.training or self._step == self._start:
            self._refuse_eval()
        if not event.passes:
            raise RecordError(
                f"{self._place}: an optimizer step without a declared batch",
                "call run.loss(ids) or run.batch(ids)",
            )
        if self._step >= self.header.steps:
            raise RecordError(
                f"{self._place}: more steps than the {self.header.steps} declared",
                "declare as many as are made",
            )
        self._writer.layout.check_ranks([p.microbatch.rank for p in event.passes], self._place)
        if odd := [
            p.microbatch.weight for p in event.passes if not math.isfinite(p.microbatch.weight)
        ]:
            raise RecordError(
                f"{self._place}: its loss was multiplied by {odd[0]}",
                "look for the step at which training went astray",
            )
        limit = self.header.clip_norm
        if limit is None:
            return
        norm = None if event.gradient_norm is None else float(event.gradient_norm)
        if norm is None or norm > limit * 1.001:
            said = "no gradient norm" if norm is None else f"gradient norm {norm:.4g}"
            raise RecordError(
                f"{self._place}: {said} above the declared clip_norm {limit:g}",
                "clip with torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm) before the step",
            )

    def _end_early(self) -> None:
        """End a stage of which some steps were skipped: its last state is that of its last step.

        Raises:
            RecordError: if no step was made, or passes after the last one changed a buffer.
        """
        if not self._step:
            raise RecordError(
                f"stage '{self.header.id}': every step was skipped",
                "begin with a smaller scale, or train on other numbers",
            )
        now = named_buffers(self._model)
        odd = [n for n, t in self._first_buffers.items() if not torch.equal(t, now[n].cpu())]
        if odd and self._skipped_last:
            raise RecordError(
                f"stage '{self.header.id}': its last step was skipped after its passes changed {odd[0]}",
                "end the stage with a step that is made",
            )
        if self._last_kept != self._step:
            self._keep({})
        self._change(steps=self._step, skipped=self.skipped)

    def _refuse_thawing(self) -> None:
        if (now := frozen_in(self._model)) != self.header.frozen:
            odd = sorted(set(now) ^ set(self.header.frozen))
            raise RecordError(
                f"{self._place}: parameters were frozen or freed inside the stage: "
                f"{', '.join(odd[:3])}",
                "freeze and free parameters between stages",
            )

    def _refuse_eval(self) -> None:
        idle = [name or "the model" for name, m in self._model.named_modules() if not m.training]
        if idle:
            raise RecordError(
                f"{self._place}: {idle[0]} is in eval mode; a re-run trains in train mode",
                "call model.train() before training goes on",
            )

    def _keep(self, generators: dict[str, Tensor]) -> None:
        self._last_state = replace(self._source.state(), generators=generators)
        if self._watch is not None:
            check_moments(self._last_state.optimizer_state)
        self._last_kept = self._step
        self._writer.write_state(self._last_state, self.header.id, self._step)

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
