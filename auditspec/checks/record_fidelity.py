"""record-fidelity: re-running recorded steps from one recorded state lands on the next."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auditspec.checks.interface import Check
from auditspec.checks.subject import Rerunnable, Subject
from auditspec.engine.interface import Engine, StepGradient
from auditspec.errors import EstimationError, EvidenceError
from auditspec.estimator.plan import needs_steps
from auditspec.estimator.recorded_gradients import worth_storing
from auditspec.gather import Opened
from auditspec.progress import SILENT, Progress
from auditspec.record.describe import same_moments
from auditspec.record.describe_optimizer import fresh_moments
from auditspec.record.deviation import MISSED_SHARE, Deviation, deviation_of, distance
from auditspec.record.provenance import explained
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import RecordFidelity as Options
from auditspec.spec.models import Spec

THRESHOLDS = {"float32": 1e-4, "float64": 1e-9}
"""Largest accepted relative deviation of the parameters, by the record's precision."""
LOSSES = 1e-6
"""As much may a recorded loss differ where the window shows that rounding does not."""

ACCEPT = (
    "if these steps use kernels that round otherwise here, set checks.record-fidelity.threshold"
)


@dataclass(frozen=True)
class _Window:
    """A re-run window: where it landed, or why it could not be re-run."""

    stage: str
    subject: str
    arithmetic: Any
    """What its steps compute; windows of one arithmetic round alike."""
    landing: Deviation | None
    problem: str = ""


def stored_by_check(spec: Spec, trajectory: Trajectory) -> frozenset[str]:
    """Ids of the stages whose gradients this check computes, so that no estimate need do so.

    None where it re-runs only some of the windows, or in another precision than the estimate's, and
    none of a damaged record, which the check itself refuses.
    """
    windows = spec.checks.of(RecordFidelity.id, Options).windows
    try:
        whole = windows == "all" or windows >= len(list(trajectory.windows()))
        same = whole and trajectory.trained_in(spec.estimator.dtype)
        return worth_storing(trajectory) if same else frozenset()
    except EvidenceError:
        return frozenset()


class RecordFidelity(Check):
    """Largest relative deviation ||re-run - recorded|| / ||recorded|| over the re-run windows.

    It is taken over parameters and buffers together, and over each kind of moment; counters must be
    equal. Besides, a window fails if its re-run misses more than 5 % of what the window moved, unless
    rounding explains it. A window is the stretch between two neighbouring recorded states.

    Unless the spec sets a threshold, a window that lands bitwise is a witness that this machine rounds
    as the trainer's did: another window of the same arithmetic must then land bitwise too, and one of
    another arithmetic that does not is inconclusive (ADR 12).

    Compared besides: the data sets with those that the record names, every stage's first state with
    the end of the stage before (and its optimizer state with what the boundary says), the recorded
    losses with those of the re-run, and the deployed checkpoint with the record's last state. If only
    m of n windows are re-run, one altered window is missed with probability 1 - m/n.
    """

    id = "record-fidelity"
    title = "Re-running the record lands on its own states"
    statistic_name = "largest relative deviation"
    source = "re-execution of the record from its own states (docs/checks.md)"
    bars = "all"
    picture = "windows"
    section = Options
    looks_at = (Opened, Rerunnable)
    halts = "the record does not reproduce itself"

    def __init__(
        self,
        rerun: Engine,
        checkpoint: Mapping[str, Tensor],
        tolerance: float,
        options: Options,
        progress: Progress = SILENT,
        visit: Callable[[StepGradient], None] | None = None,
    ) -> None:
        self.rerun = rerun
        self.checkpoint = checkpoint
        self.tolerance = tolerance
        self.options = options
        self.progress = progress
        self.visit = visit

    @classmethod
    def of(cls, subject: Subject) -> RecordFidelity:
        """On the record, and the checkpoint that it must end with."""
        spec, record = subject.spec, subject[Rerunnable]
        return cls(
            record.rerun,
            subject[Opened].checkpoint,
            spec.model.tolerance,
            spec.checks.of(cls.id, Options),
            subject.progress,
            record.visit,
        )

    @classmethod
    def stops(cls, result: CheckResult, spec: Spec) -> str:
        """Krylov needs no steps, so that it goes on where none could be re-run."""
        if result.outcome == "inconclusive" and not needs_steps(spec.estimator.method):
            return ""
        return super().stops(result, spec)

    def run(self) -> CheckResult:
        """Re-run all windows, or a random sample of them."""
        threshold = self.options.threshold or THRESHOLDS.get(self._precision(), 1e-4)
        details = [*self._data(), *self._gaps()]
        if _failed(details):
            return self.result("fail", _why(details), threshold=threshold, details=details)
        details += [self._deployed(), *self._seams()]
        gradients = self.rerun.gradients
        windows = list(self.rerun.trajectory.windows())
        if self._boundaries_only():
            return self.result(
                "fail" if _failed(details) else "inconclusive",
                _why(details) or "the record holds no steps, so nothing can be re-run",
                threshold=threshold,
                details=details,
            )
        chosen = windows
        if self.options.windows != "all" and self.options.windows < len(windows):
            # drawn when the audit runs, so that no trainer can know which windows are safe
            places = random.SystemRandom().sample(range(len(windows)), self.options.windows)
            chosen = [windows[place] for place in sorted(places)]
        total = sum(stop - start for _, start, stop in chosen)
        landed = []
        with self.progress.phase("re-running the record", total) as advance:
            for stage, start, stop in chosen:
                landed.append(self._window(stage, start, stop))
                advance(stop - start)
        rerun = list(self._judged(landed, threshold))
        details += rerun
        worst = max((math.inf if d.statistic is None else d.statistic for d in rerun), default=0.0)
        missed = 1 - len(chosen) / len(windows) if windows else 1.0
        outcome: Outcome = (
            "fail" if _failed(details) else "inconclusive" if _open(details) else "pass"
        )
        reason = _why(details) or (
            f"{len(chosen)} of {len(windows)} windows re-run, largest deviation {worst:.1e}"
            + ("" if any(_lands(w) for w in landed) else "; none lands bitwise")
            + (
                f"; one altered window would be missed with probability {missed:.2f}"
                if missed
                else ""
            )
        )
        return self.result(
            outcome,
            reason,
            statistic=worst if math.isfinite(worst) else None,
            threshold=threshold,
            gradients=self.rerun.gradients - gradients,
            coverage=1 - missed,
            details=details,
        )

    def _window(self, stage: StageTrajectory, start: int, stop: int) -> _Window:
        subject, arithmetic = f"{stage.id} {start}-{stop}", _arithmetic(stage)
        losses: dict[int, float] = {}

        def note(step_gradient: StepGradient) -> None:
            losses[step_gradient.step.index] = step_gradient.loss
            if self.visit is not None:
                self.visit(step_gradient)

        try:
            begin, wanted = stage.state(start), stage.state(stop)
            reached = self.rerun.run(stage, begin, start, stop, visit=note)
        except (EstimationError, EvidenceError) as error:
            return _Window(stage.id, subject, arithmetic, None, error.message)
        landing = deviation_of(begin, reached, wanted, stop - start)
        if landing.missed > MISSED_SHARE:
            problem = f"misses {min(landing.missed, 1):.0%} of what the window moved"
        else:
            problem = _other_loss(stage, losses, LOSSES if landing.conclusive else MISSED_SHARE)
        return _Window(stage.id, subject, arithmetic, landing, problem)

    def _judged(self, windows: list[_Window], threshold: float) -> Iterator[CheckDetail]:
        """Every window by itself, and beside the others: rounding differs everywhere or nowhere."""
        witnesses = [
            window.arithmetic
            for window in windows
            if window.landing is not None
            and window.landing.conclusive
            and self.options.threshold is None
        ]
        for window in windows:
            off = math.inf if window.landing is None else window.landing.deviation
            alike = witnesses.count(window.arithmetic)
            outcome: Outcome = "pass"
            note = window.problem
            if note or off > threshold:
                outcome = "fail"
            elif off and alike:
                outcome = "fail"
                note = f"not bitwise, though windows of the same arithmetic are ({alike})"
            elif off and witnesses:
                outcome = "inconclusive"
                note = f"not bitwise, though windows of other arithmetic are ({len(witnesses)})"
            yield CheckDetail(
                subject=window.subject,
                stage=window.stage,
                outcome=outcome,
                statistic=off if math.isfinite(off) else None,
                note=note,
            )

    def _data(self) -> Iterator[CheckDetail]:
        """The data sets that the ids point into, by digest."""
        recorded: dict[str, set[str]] = {}
        for stage in self.rerun.trajectory.stages:
            for name, digest in stage.datasets.items():
                recorded.setdefault(name, set()).add(digest)
        for name, digests in recorded.items():
            held = self.rerun.datasets.get(name)
            same = held is not None and digests == {held.digest}
            yield CheckDetail(
                subject=f"data set {name}",
                outcome="pass" if same else "fail",
                note="the one that was trained on" if same else "not the one that was trained on",
            )

    def _gaps(self) -> Iterator[CheckDetail]:
        """Stages that the record does not hold from end to end."""
        for stage in self.rerun.trajectory.stages:
            try:
                kept, planned = stage.state_steps, stage.header.steps
                bounds = bool(kept) and (kept[0], kept[-1]) == (0, planned)
                made = planned if self._boundaries_only() else len(stage.steps)
                whole = stage.header.complete and bounds and made == planned
                note = f"{made} of {planned} steps, states at {', '.join(map(str, kept)) or 'none'}"
            except EvidenceError as error:
                whole, note = False, error.message
            if not whole:
                note = f"the stage is not recorded from end to end: {note}"
                yield CheckDetail(subject=stage.id, outcome="fail", note=note)

    def _deployed(self) -> CheckDetail:
        subject = "deployed checkpoint"
        try:
            stage = self.rerun.trajectory.stages[-1]
            last = stage.last
            self.rerun.enter(stage)
        except EvidenceError as error:
            return CheckDetail(subject=subject, outcome="fail", note=error.message)
        held, ties = last.parameters | last.buffers, stage.ties
        saved = self.rerun.model.state_dict().keys()  # second names too; no temporary buffers
        wanted = {
            name: held[ties.get(name, name)]
            for name in saved
            if name not in ties or name in self.checkpoint
        }
        found = dict(self.checkpoint)
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            odd = sorted(found.keys() ^ wanted.keys()) or ["shapes"]
            note = f"other tensors than the record's last state: {', '.join(odd[:5])}"
            return CheckDetail(subject=subject, outcome="fail", note=note)
        off = distance(State(found, {}), State(wanted, {}))
        same = off <= self.tolerance
        return CheckDetail(
            subject=subject,
            outcome="pass" if same else "fail",
            statistic=off if math.isfinite(off) else None,
            note=f"{'' if same else 'not '}the record's last state; accepted {self.tolerance:g}",
        )

    def _seams(self) -> Iterator[CheckDetail]:
        stages = self.rerun.trajectory.stages
        for index, after in enumerate(stages):
            before = stages[index - 1] if index else None
            off, wrong = 0.0, ""
            try:
                first, left = after.first, None
                if before is not None:
                    left = self.rerun.carry_over(index, before.last)
                    off = distance(first, left)
                    wrong = self._made_otherwise(index, first)
                if after.header.boundary == "carry":
                    optimizer_state = left.optimizer_state if left is not None else {}
                else:
                    optimizer = self.rerun.optimizer(after)
                    optimizer_state = fresh_moments(self.rerun.model, optimizer)
                problem = wrong or (
                    "begins elsewhere than the stage before ended"
                    if off
                    else ""
                    if same_moments(optimizer_state, first.optimizer_state)
                    else f"its first optimizer state is not what '{after.header.boundary}' means"
                )
            except (EstimationError, EvidenceError) as error:
                problem, off = error.message, math.inf
            if before is None and not problem:
                continue
            yield CheckDetail(
                subject=f"{before.id} to {after.id}" if before else f"start of {after.id}",
                outcome="fail" if problem else "pass",
                statistic=off if math.isfinite(off) else None,
                note=problem or "the stage begins where the one before ended",
            )

    def _made_otherwise(self, index: int, first: State) -> str:
        """What the change of the model before a stage does not make as it is recorded, if anything.

        Values that owe nothing to training may be drawn otherwise by another version of torch or kind
        of device; they are the same in both worlds of every effect.
        """
        header, record = self.rerun.trajectory.stages[index].header, self.rerun.trajectory.header
        if header.extend is None or not index:
            return ""
        again = self.rerun.changes.check(index)
        alike = record.versions.get("torch") == torch.__version__
        alike &= torch.device(record.device).type == self.rerun.device.type
        odd = [
            name
            for name, value in (first.parameters | first.buffers).items()
            if (alike or name not in header.added) and not explained(again[name], value)
        ]
        return (
            f"{header.extend.name} does not make the recorded {', '.join(odd[:3])}" if odd else ""
        )

    def _boundaries_only(self) -> bool:
        return self.rerun.trajectory.grade == "boundaries"

    def _precision(self) -> str:
        floating = [i.dtype for i in self.rerun.trajectory.header.parameters if "float" in i.dtype]
        return floating[0] if floating else "float32"


def _arithmetic(stage: StageTrajectory) -> tuple[object, ...]:
    """What decides how a stage's steps round: its model, objective, and optimizer's class."""
    header = stage.header
    return (
        stage.parameters,
        header.frozen,
        header.objective.name,
        header.optimizer,
        header.autocast,
        header.clip_norm is not None,
    )


def _other_loss(stage: StageTrajectory, losses: Mapping[int, float], accepted: float) -> str:
    """The first step whose recorded loss is not that of the re-run; empty where none is.

    Differences are taken relative to the largest loss of the stage: a loss near 0 is all rounding.
    """
    scale = max((abs(step.loss) for step in stage.steps if step.loss is not None), default=0.0)
    for k, again in losses.items():
        loss = stage.steps[k].loss
        if loss is not None and not abs(again - loss) <= accepted * scale:
            return f"step {k} records a loss of {loss:.6g}, its re-run {again:.6g}"
    return ""


def _lands(window: _Window) -> bool:
    return window.landing is not None and window.landing.bitwise


def _failed(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "fail"]


def _open(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "inconclusive"]


def _why(details: list[CheckDetail]) -> str:
    found = _failed(details) or _open(details)
    remedy = "" if _failed(details) or not found else f"; {ACCEPT}"
    shown = "; ".join(
        f"{d.subject}: {d.note or 'not finite' if d.statistic is None else _deviates(d)}"
        for d in found[:3]
    )
    return (f"{shown}; and {len(found) - 3} more" if len(found) > 3 else shown) + remedy


def _deviates(detail: CheckDetail) -> str:
    return f"{detail.note}{', ' if detail.note else ''}deviates by {detail.statistic:.2g}"
