"""record-fidelity: re-running recorded steps from one recorded state lands on the next."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from auditspec.checks.interface import Check
from auditspec.errors import EstimationError, EvidenceError
from auditspec.estimator.kept import keepable
from auditspec.progress import SILENT, Progress
from auditspec.record.compare import MISSED_SHARE, distance, missed_share, moments_distance
from auditspec.record.describe import same_moments
from auditspec.record.optimizers import fresh_moments
from auditspec.record.rerun import Moment, Rerun, is_recorded_precision
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.models import RecordFidelity as Options
from auditspec.spec.models import Spec

THRESHOLDS = {"float32": 1e-4, "float64": 1e-9}
"""Largest accepted relative deviation of the parameters, by the record's precision."""


def kept_by_check(spec: Spec, trajectory: Trajectory) -> frozenset[str]:
    """Ids of the stages whose gradients this check computes, so that paired replay need not.

    None where it re-runs only some of the windows, or in another precision than the estimate's, and
    none of a damaged record, which the check itself refuses.
    """
    windows, dtype = spec.checks.record_fidelity.windows, getattr(torch, spec.estimator.dtype)
    try:
        whole = windows == "all" or windows >= len(list(trajectory.windows()))
        same = whole and is_recorded_precision(trajectory, dtype)
        return keepable(trajectory) if same else frozenset()
    except EvidenceError:
        return frozenset()


class RecordFidelity(Check):
    """Largest relative deviation ||re-run - recorded|| / ||recorded|| over the re-run windows.

    It is taken over parameters and buffers together, and over each kind of moment; counters must be
    equal. Besides, a window fails if its re-run misses more than 5 % of what the window moved, unless
    rounding explains it. A window is the stretch between two neighbouring recorded states. Compared besides: the data
    sets with those that the record names, every stage's first state with the end of the stage
    before (and its optimizer state with what the boundary says), and the deployed checkpoint with
    the record's last state. If only m of n windows are re-run, one altered window is missed with
    probability 1 - m/n.
    """

    id = "record-fidelity"
    title = "Re-running the record lands on its own states"
    statistic_name = "largest relative deviation"

    def __init__(
        self,
        rerun: Rerun,
        checkpoint: Mapping[str, Tensor],
        tolerance: float,
        options: Options,
        progress: Progress = SILENT,
        visit: Callable[[Moment], None] | None = None,
    ) -> None:
        self.rerun = rerun
        self.checkpoint = checkpoint
        self.tolerance = tolerance
        self.options = options
        self.progress = progress
        self.visit = visit

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
            chosen = random.SystemRandom().sample(windows, self.options.windows)
        total = sum(stop - start for _, start, stop in chosen)
        with self.progress.phase("re-running the record", total) as advance:
            for stage, start, stop in chosen:
                details.append(self._window(stage, start, stop, threshold))
                advance(stop - start)
        rerun = details[-len(chosen) :] if chosen else []
        worst = max((math.inf if d.statistic is None else d.statistic for d in rerun), default=0.0)
        missed = 1 - len(chosen) / len(windows) if windows else 1.0
        outcome: Outcome = "fail" if _failed(details) else "pass"
        reason = _why(details) or (
            f"{len(chosen)} of {len(windows)} windows re-run, largest deviation {worst:.1e}"
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
            details=details,
        )

    def _window(
        self, stage: StageTrajectory, start: int, stop: int, threshold: float
    ) -> CheckDetail:
        subject = f"{stage.id} {start}-{stop}"
        try:
            begin, wanted = stage.state(start), stage.state(stop)
            reached = self.rerun.run(stage, begin, start, stop, self.visit)
        except (EstimationError, EvidenceError) as error:
            return CheckDetail(subject=subject, outcome="fail", note=error.message)
        off = max(distance(reached, wanted), moments_distance(reached, wanted))
        missed = missed_share(begin, reached, wanted, stop - start)
        made_up = missed > MISSED_SHARE
        return CheckDetail(
            subject=subject,
            outcome="fail" if made_up or off > threshold else "pass",
            statistic=off if math.isfinite(off) else None,
            note=f"misses {min(missed, 1):.0%} of what the window moved" if made_up else "",
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
            off = 0.0
            try:
                first, left = after.first, None
                if before is not None:
                    left = self.rerun.carry_over(index, before.last)
                    off = distance(first, left)
                if after.header.boundary == "carry":
                    moments = left.moments if left is not None else {}
                else:
                    optimizer = self.rerun.optimizer(after)
                    moments = fresh_moments(self.rerun.model, optimizer)
                problem = (
                    "begins elsewhere than the stage before ended"
                    if off
                    else ""
                    if same_moments(moments, first.moments)
                    else f"its first optimizer state is not what '{after.header.boundary}' means"
                )
            except (EstimationError, EvidenceError) as error:
                problem = error.message
            if before is None and not problem:
                continue
            yield CheckDetail(
                subject=f"{before.id} to {after.id}" if before else f"start of {after.id}",
                outcome="fail" if problem else "pass",
                statistic=off if math.isfinite(off) else None,
                note=problem or "the stage begins where the one before ended",
            )

    def _boundaries_only(self) -> bool:
        return self.rerun.trajectory.grade == "boundaries"

    def _precision(self) -> str:
        floating = [i.dtype for i in self.rerun.trajectory.header.parameters if "float" in i.dtype]
        return floating[0] if floating else "float32"


def _failed(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "fail"]


def _why(details: list[CheckDetail]) -> str:
    failed = _failed(details)
    shown = "; ".join(
        f"{d.subject}: {d.note or 'not finite' if d.statistic is None else _deviates(d)}"
        for d in failed[:3]
    )
    return f"{shown}; and {len(failed) - 3} more" if len(failed) > 3 else shown


def _deviates(detail: CheckDetail) -> str:
    return f"{detail.note}{', ' if detail.note else ''}deviates by {detail.statistic:.2g}"
