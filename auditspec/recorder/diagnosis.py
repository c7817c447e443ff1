"""Name the likely cause where a re-run does not land: the first thing that differs, step by step.

A window's steps are made again one by one and held against the record, and against the notes of whoever saw
them made, where there are any. Up to the first difference the re-run is at the recorded weights, so
that it lies in that step: in its batch, its loss, its gradient, what became of that, or the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import torch

from auditspec.attempt import reason_of
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.loading import load_microbatch
from auditspec.errors import AuditspecError
from auditspec.record.deviation import threshold_of
from auditspec.record.format import Autocast
from auditspec.record.state import State, capture, deviation, restore
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step
from auditspec.recorder.causes import Cause, cause
from auditspec.recorder.probe import COMPILED, Norms, Notes, StepNote, batch_digest, signature
from auditspec.recorder.windows import Window, blameless

SAME = 1e-5
"""Relative difference of losses and gradients that rounding may make."""
SAME_WEIGHTS = 1e-7
"""The same of the norms of weights, which a step moves little."""
AUTOCASTS: tuple[Autocast | None, ...] = (
    None,
    *(
        Autocast(dtype=dtype, around=around)
        for dtype in get_args(Autocast.model_fields["dtype"].annotation)
        for around in get_args(Autocast.model_fields["around"].annotation)
    ),
)
"""What to try."""
CONSTANT = 1e-3
"""Relative spread of a ratio that is one factor."""


@dataclass(frozen=True)
class _Seen:
    """A step on both sides."""

    rerun: Engine
    stage: StageTrajectory
    step: Step
    state: State
    """Before the step, of the re-run."""
    again: StepGradient
    note: StepNote | None
    notes: Notes

    @property
    def ours(self) -> Norms:
        """Norms of the re-run's gradients, of the parameters that take one."""
        frozen = self.stage.header.frozen
        return {
            name: float(gradient.detach().double().norm())
            for name, gradient in self.again.gradients.items()
            if gradient is not None and name not in frozen
        }

    @property
    def same_loss(self) -> bool | None:
        """Whether the loss is that of the record; None where that has none."""
        loss = self.step.loss
        return None if loss is None else _close(self.again.loss, loss)

    @property
    def same_gradient(self) -> bool:
        """Whether the gradient is the one noted; true where none was."""
        return self.note is None or _alike(self.note.backward, self.scaled)

    @property
    def scaled(self) -> Norms:
        """As a backward pass leaves them under a gradient scaler, where the loop has one."""
        return {name: norm * self.scale for name, norm in self.ours.items()}

    @property
    def scale(self) -> float:
        """Of the gradient scaler; 1 without one."""
        return max((microbatch.scale for microbatch in self.step.batches), default=1.0)

    @property
    def passes(self) -> int:
        """How many were differentiated, by the record."""
        return sum(microbatch.weight != 0 for microbatch in self.step.batches)


def diagnose(rerun: Engine, window: Window, notes: Notes) -> Cause:
    """The likely cause, after a window did not land.

    Args:
        rerun: of the record.
        window: what did not land.
        notes: of its steps; empty where nobody saw them.
    """
    try:
        return next(_differences(rerun, window, notes), cause("not-noted", window.stop - 1))
    except (Exception, SystemExit) as error:  # whatever the training code raises
        if blameless(error):
            raise
        return failure(error)


def failure(error: BaseException) -> Cause:
    """The cause where re-running raises an error."""
    remedy = error.remedy if isinstance(error, AuditspecError) else ""
    return cause("fails", error=reason_of(error), remedy=remedy)


def _differences(rerun: Engine, window: Window, notes: Notes) -> Iterator[Cause]:
    stage, optimizer = window.stage, rerun.optimizer(window.stage)
    restore(stage.state(window.start), rerun.model, optimizer)
    end: Norms = {}
    sure = True  # that the re-run is where the record was
    with rerun.training():
        for step in stage.steps[window.start : window.stop]:
            note = notes.steps.get(step.index)
            if note is not None and end:
                yield from _outside(note, end)
            state = capture(rerun.model, optimizer)
            again = rerun.gradient(stage, step, optimizer)
            seen = _Seen(rerun, stage, step, state, again, note, notes)
            if seen.same_loss is False and not sure:
                yield cause("not-noted", step.index)
            if seen.same_loss is False or not seen.same_gradient:
                yield from _of_the_pass(seen)
            if note is not None:
                yield from _of_the_edit(seen, notes)
            rerun.update(again)
            if note is not None:
                yield from _of_the_update(seen)
                end = note.end
            sure &= note is not None
    yield from _buffers(window, capture(rerun.model, optimizer))


# --- the loss and its gradient --------------------------------------------------------------------


def _of_the_pass(seen: _Seen) -> Iterator[Cause]:
    """The step's loss, or the gradient that its last pass left, is another."""
    yield from _not_a_function(seen)
    yield from _batches(seen)
    yield from _autocast(seen)
    changed = _changed(seen)
    rows = any(m.batch is None for m in seen.step.batches)
    itself = rows and seen.note is not None and not seen.note.batches
    if seen.same_loss is False:
        yield from changed
        if itself:
            yield cause("own-batch", seen.step.index)
        yield cause("other-loss", seen.step.index)
    yield from _gradient(seen)
    yield from changed
    if itself and not seen.same_loss:
        yield cause("own-batch", seen.step.index)
    yield cause("loss-term" if seen.same_loss else "other-objective", seen.step.index)


def _not_a_function(seen: _Seen) -> Iterator[Cause]:
    """A pass that gives two values for one state."""
    for microbatch in seen.step.batches:
        if _batch(seen, microbatch) != _batch(seen, microbatch):
            yield cause("random-batch", seen.step.index)
    if not _close(_at(seen).loss, _at(seen).loss):
        yield cause("random-objective", seen.step.index)


def _batches(seen: _Seen) -> Iterator[Cause]:
    """A batch that was loaded otherwise in training."""
    loaded = [m for m in seen.step.batches if m.batch is None]
    if seen.note is None or len(seen.note.batches) != len(loaded):
        return
    for microbatch, digest in zip(loaded, seen.note.batches, strict=True):
        if _batch(seen, microbatch) != digest:
            yield cause("other-batch", seen.step.index)


def _autocast(seen: _Seen) -> Iterator[Cause]:
    """Another precision of autocast gives what was seen."""
    for autocast in AUTOCASTS:
        if autocast == seen.stage.header.autocast:
            continue
        header = seen.stage.header.model_copy(update={"autocast": autocast})
        other = StageTrajectory(seen.stage.folder, header, seen.stage.record)
        try:
            again = _at(seen, other)
        except (RuntimeError, TypeError, AuditspecError):  # not every model runs in every precision
            continue
        ours = _Seen(seen.rerun, other, seen.step, seen.state, again, seen.note, seen.notes)
        if ours.same_loss is not False and ours.same_gradient:
            yield cause("autocast", seen.step.index, precision=_said(autocast))


def _said(autocast: Autocast | None) -> str:
    return "no autocast" if autocast is None else f"{autocast.dtype} around the {autocast.around}"


def _changed(seen: _Seen) -> Iterator[Cause]:
    """A model that is not what the factory, and the changes since, build."""
    theirs, ours = seen.notes.signature, signature(seen.rerun.model)
    if not theirs:
        return
    for name in [*theirs, *(n for n in ours if n not in theirs)]:
        there, here = theirs.get(name, "nothing"), ours.get(name, "nothing")
        if there == here:
            continue
        code = "other-model"
        if (COMPILED in there) != (COMPILED in here):
            code = "compile"
        elif "gradient hooks" in (there, here):
            code = "gradient-hooks"
        yield cause(
            code, seen.step.index, module=name.strip() or "the model", there=there, here=here
        )


def _gradient(seen: _Seen) -> Iterator[Cause]:
    """The loss is the same, or was not seen, and the gradient another."""
    note = seen.note
    if note is None:
        return
    if note.before:
        yield cause("zero-grad", seen.step.index, parameter=next(iter(note.before)))
    if note.between and not any(note.between.values()):
        yield cause("zero-grad-between", seen.step.index)
    ratio, passes = _ratio(note.backward, seen.scaled), seen.passes
    if ratio is not None:
        power = math.log2(ratio) if ratio > 0 else 0.0
        if note.backwards > passes and _close(ratio, note.backwards / passes):
            yield cause("backwards", seen.step.index, backwards=note.backwards, passes=passes)
        if power >= 4 and _close(power, round(power)):
            yield cause("scaler", seen.step.index, ratio=f"{ratio:g}")
        yield cause("factor", seen.step.index, ratio=f"{ratio:.5g}")
    if note.backwards != passes:
        yield cause("backwards", seen.step.index, backwards=note.backwards, passes=passes)


# --- what lies between the gradient and the weights -----------------------------------------------


def _of_the_edit(seen: _Seen, notes: Notes) -> Iterator[Cause]:
    """The optimizer took other gradients than a re-run gives it."""
    note, limit = seen.note, seen.stage.header.clip_norm
    if note is None:
        return
    total = _total(seen.ours)
    factor = 1.0 if limit is None else min(1.0, limit / (total + 1e-6))
    clipped = {name: norm * factor for name, norm in seen.ours.items()}
    if _alike(note.taken, clipped) or _alike(note.taken, seen.scaled):
        return  # a fused optimizer divides by the scale itself
    ratio = _ratio(note.taken, note.backward)
    if ratio is not None:
        cut = _clipped_to(notes)
        if limit is not None:
            yield cause("other-clipping", seen.step.index, limit=f"{limit:g}", ratio=f"{ratio:.4g}")
        if cut is not None and not _round(cut) and _round(cut * seen.scale):
            yield cause("clipping-scaled", seen.step.index, limit=f"{cut * seen.scale:.4g}")
        if cut is not None:
            yield cause("clipping", seen.step.index, limit=f"{cut:.4g}")
        yield cause("factor-after", seen.step.index, ratio=f"{ratio:.5g}")
    value = max(note.largest.values(), default=0.0)
    reached = [n for n, largest in note.largest.items() if largest == value]
    lower = all(note.taken[n] <= note.backward.get(n, 0) * (1 + SAME) for n in note.taken)
    if lower and len(reached) > 1:
        yield cause("clipping-by-value", seen.step.index, value=f"{value:.4g}")
    odd = [n for n, norm in note.taken.items() if not _close(norm, note.backward.get(n, 0.0))]
    yield cause("edited", seen.step.index, parameter=(odd or ["a parameter"])[0])


def _clipped_to(notes: Notes) -> float | None:
    """The norm above which gradients were cut, as far as the steps show one; None for another factor."""
    cut: list[float] = []
    left: list[float] = []
    for note in notes.steps.values():
        before, after = _total(note.backward), _total(note.taken)
        (left if _close(before, after) else cut).append(after)
    limit = max(cut, default=0.0)
    plain = all(_close(norm, limit, CONSTANT) for norm in cut)
    plain &= all(norm <= limit * (1 + CONSTANT) for norm in left)
    known = len(cut) > 1 or left or _round(limit)
    return limit if cut and plain and known else None


def _of_the_update(seen: _Seen) -> Iterator[Cause]:
    """The weights after the step are others."""
    if seen.note is None:
        return
    for name, norm in seen.note.end.items():
        ours = float(seen.again.parameters[name].detach().double().norm())
        if not _close(norm, ours, SAME_WEIGHTS):
            yield cause("other-update", seen.step.index, parameter=name)


def _buffers(window: Window, reached: State) -> Iterator[Cause]:
    """The weights at the end are the recorded ones, and a buffer is not."""
    wanted, stage = window.stage.state(window.stop), window.stage
    weights = State(reached.parameters, {}), State(wanted.parameters, {})
    if deviation(*weights) > threshold_of(stage.parameters):
        return
    for name, buffer in wanted.buffers.items():
        if not torch.equal(reached.buffers[name], buffer):
            yield cause("buffer", window.stop - 1, buffer=name)


def _outside(note: StepNote, end: Norms) -> Iterator[Cause]:
    """The weights were changed since the step before."""
    for name, norm in end.items():
        if not _close(note.begin.get(name, norm), norm, 1e-10):
            yield cause("outside", note.step, parameter=name)


# --- comparisons ----------------------------------------------------------------------------------


def _at(seen: _Seen, stage: StageTrajectory | None = None) -> StepGradient:
    """The step's gradient once more, from the state before it."""
    restore(seen.state, seen.rerun.model)
    return seen.rerun.gradient(stage or seen.stage, seen.step, seen.again.optimizer)


def _batch(seen: _Seen, microbatch: Microbatch) -> str:
    """Digest of a batch, loaded under the random state of its pass."""
    seen.rerun.go_to_random_state(microbatch)
    return batch_digest(load_microbatch(seen.rerun.functions, seen.rerun.datasets, microbatch))


def _close(left: float, right: float, accepted: float = SAME) -> bool:
    return abs(left - right) <= accepted * max(abs(left), abs(right)) or left == right


def _round(limit: float) -> bool:
    """Whether someone may have written a number down."""
    return limit > 0 and _close(limit, float(f"{limit:.1e}"))


def _alike(theirs: Norms, ours: Norms) -> bool:
    """Whether gradients are the same; those too small to matter beside all are left out."""
    floor = SAME * max(_total(theirs), _total(ours))
    return all(
        abs(theirs.get(name, 0.0) - ours.get(name, 0.0)) <= floor for name in {*theirs, *ours}
    )


def _ratio(theirs: Norms, ours: Norms) -> float | None:
    """Theirs / ours, where that is one factor over all parameters, other than 1."""
    ratio = _total(theirs) / _total(ours) if _total(ours) else math.inf
    if not math.isfinite(ratio) or ratio == 0 or _close(ratio, 1.0, 10 * CONSTANT):
        return None
    scaled = {name: norm * ratio for name, norm in ours.items()}
    floor = CONSTANT * _total(theirs)
    one = all(abs(theirs.get(n, 0.0) - norm) <= floor for n, norm in scaled.items())
    return ratio if one else None


def _total(norms: Mapping[str, float]) -> float:
    return math.sqrt(sum(norm**2 for norm in norms.values()))
