"""record-fidelity: re-running recorded steps from one recorded state lands on the next."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

from torch import Tensor

from auditspec.checks.interface import Check
from auditspec.errors import EstimationError
from auditspec.progress import SILENT, Progress
from auditspec.record.rerun import Rerun
from auditspec.record.state import State, deviation
from auditspec.record.trajectory import StageTrajectory
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.models import RecordFidelity as Options

THRESHOLDS = {"float32": 1e-4, "float64": 1e-9}
"""Largest accepted relative deviation of the parameters, by the record's precision."""


class RecordFidelity(Check):
    """Largest relative deviation ||re-run - recorded|| / ||recorded|| over the re-run windows.

    A window is the stretch between two neighbouring recorded states. It also compares every
    stage's first state with the end of the stage before, and the deployed checkpoint with the
    record's last state. If only m of n windows are re-run, one altered window is missed with
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
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        self.rerun = rerun
        self.checkpoint = checkpoint
        self.tolerance = tolerance
        self.options = options
        self.seed = seed
        self.progress = progress

    def run(self) -> CheckResult:
        """Re-run all windows, or a random sample of them."""
        threshold = self.options.threshold or THRESHOLDS.get(self._precision(), 1e-4)
        details = [self._deployed(), *self._seams()]
        gradients = self.rerun.gradients
        windows = list(self.rerun.trajectory.windows())
        if self.rerun.trajectory.grade == "boundaries":
            return self.result(
                "fail" if _failed(details) else "inconclusive",
                _why(details) or "the record holds no steps, so nothing can be re-run",
                threshold=threshold,
                details=details,
            )
        chosen = windows
        if self.options.windows != "all" and self.options.windows < len(windows):
            chosen = random.Random(self.seed).sample(windows, self.options.windows)  # noqa: S311
        worst = 0.0
        with self.progress.phase(
            "re-running the record", sum(b - a for _, a, b in chosen)
        ) as advance:
            for stage, start, stop in chosen:
                found, note = self._window(stage, start, stop)
                worst = max(worst, found)
                details.append(
                    CheckDetail(
                        subject=f"{stage.id} {start}-{stop}",
                        outcome="pass" if found <= threshold else "fail",
                        statistic=found if math.isfinite(found) else None,
                        note=note,
                    )
                )
                advance(stop - start)
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

    def _window(self, stage: StageTrajectory, start: int, stop: int) -> tuple[float, str]:
        try:
            reached = self.rerun.run(stage, stage.state(start), start, stop)
        except EstimationError as error:
            return math.inf, error.message
        return deviation(reached, stage.state(stop)), ""

    def _deployed(self) -> CheckDetail:
        last = self.rerun.trajectory.stages[-1].last
        wanted = last.parameters | last.buffers
        aliases = self.rerun.trajectory.header.ties
        found = {n: t for n, t in self.checkpoint.items() if n not in aliases}
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in wanted.items()}:
            odd = sorted(found.keys() ^ wanted.keys()) or ["shapes"]
            return CheckDetail(
                subject="deployed checkpoint",
                outcome="fail",
                note=f"other tensors than the record's last state: {', '.join(odd[:5])}",
            )
        off = deviation(State(dict(found), {}), State(wanted, {}))
        return CheckDetail(
            subject="deployed checkpoint",
            outcome="pass" if off <= self.tolerance else "fail",
            statistic=off if math.isfinite(off) else None,
            note=f"against the record's last state; accepted {self.tolerance:g}",
        )

    def _seams(self) -> list[CheckDetail]:
        stages = self.rerun.trajectory.stages
        seams = []
        for before, after in itertools.pairwise(stages):
            off = deviation(after.first, before.last)
            seams.append(
                CheckDetail(
                    subject=f"{before.id} to {after.id}",
                    outcome="pass" if off == 0 else "fail",
                    statistic=off if math.isfinite(off) else None,
                    note="the stage begins where the one before ended",
                )
            )
        return seams

    def _precision(self) -> str:
        floating = [i.dtype for i in self.rerun.trajectory.header.parameters if "float" in i.dtype]
        return floating[0] if floating else "float32"


def _failed(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "fail"]


def _why(details: list[CheckDetail]) -> str:
    failed = _failed(details)
    shown = "; ".join(
        f"{d.subject}: {d.note or f'deviates by {d.statistic:.2g}' if d.statistic is not None else d.note or 'not finite'}"
        for d in failed[:3]
    )
    return f"{shown}; and {len(failed) - 3} more" if len(failed) > 3 else shown
