"""record-fidelity: re-running recorded steps from one recorded state lands on the next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from auditspec.budget import windows_within
from auditspec.checks.deployed import SUBJECT, UNCONVERTED, Deployed, compare, recorded_end
from auditspec.checks.interface import Check
from auditspec.checks.subject import Rerunnable, Subject
from auditspec.checks.windows import Window, Windows
from auditspec.engine.interface import Engine
from auditspec.engine.optimizers.agreement import tells_gradients
from auditspec.errors import EstimationError, EvidenceError
from auditspec.estimator.plan import AUTO, needs_steps
from auditspec.gather import Opened
from auditspec.messages import Message, message
from auditspec.progress import SILENT, Progress
from auditspec.record.describe import same_moments
from auditspec.record.describe_optimizer import fresh_moments
from auditspec.record.deviation import distance, threshold_of
from auditspec.record.format import RecordHeader
from auditspec.record.provenance import explained
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import RecordFidelity as Options
from auditspec.spec.models import Spec


def beside_estimates(spec: Spec, trajectory: Trajectory) -> frozenset[str]:
    """Ids of the stages that estimates re-run on their way, so that this check need not.

    Those after the first whose gradients cannot be read off the record. None where the check re-runs only some of the
    windows, where it judges by a threshold of the spec's, or where an estimate has another precision than the record; and none
    of a damaged record, which the check itself refuses.
    """
    options = spec.checks.of(RecordFidelity.id, Options)
    try:
        windows, _ = windows_within(spec, trajectory)
        if windows != "all" or options.threshold is not None:
            return frozenset()
        if not trajectory.trained_in(spec.estimator.dtype):
            return frozenset()
        later = trajectory.stages[1:]
        return frozenset(s.id for s in later if s.steps and not tells_gradients(s))
    except EvidenceError:
        return frozenset()


class RecordFidelity(Check):
    """Largest relative deviation ||re-run - recorded|| / ||recorded|| over the re-run windows.

    It is taken over parameters and buffers together, and over each kind of moment; counters must be
    equal. Besides, a window fails if its re-run misses more than 5 % of what the window moved, unless
    rounding explains it. A window is the stretch between two neighbouring recorded states. Those that an estimate passes on its
    way are re-run there, once (`Windows`).

    Unless the spec sets a threshold, a window that lands bitwise is a witness that this machine rounds
    as the trainer's did: another window of the same arithmetic must then land bitwise too, and one of
    another arithmetic that does not is inconclusive (ADR 12).

    Compared besides: the data sets with those that the record names, every stage's first state with
    the end of the stage before (and its optimizer state with what the boundary says), the recorded
    losses with those of the re-run, and the deployed weights with the record's last state as it was converted (`deployed`). If only
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
    halts = message("record-not-reproduced")

    def __init__(
        self,
        rerun: Engine,
        deployed: Deployed,
        options: Options,
        progress: Progress = SILENT,
        windows: Windows | None = None,
    ) -> None:
        self.rerun = rerun
        self.deployed = deployed
        self.options = options
        self.progress = progress
        self.windows = Windows() if windows is None else windows

    @classmethod
    def of(cls, subject: Subject) -> RecordFidelity:
        """On the record, and the checkpoint that it must end with."""
        spec, record, opened = subject.spec, subject[Rerunnable], subject[Opened]
        model = spec.model
        return cls(
            record.rerun,
            Deployed(
                opened.deployed, model.tolerance, model.conversion or UNCONVERTED, opened.base or {}
            ),
            spec.checks.of(cls.id, Options),
            subject.progress,
            record.windows,
        )

    @classmethod
    def stops(cls, result: CheckResult, spec: Spec) -> Message | None:
        """What needs no steps goes on where none could be re-run; `auto` takes such a method where schedules are declared."""
        method = spec.estimator.method
        goes_on = not needs_steps(method)
        if method == AUTO and any(reason.code == "no-steps-to-re-run" for reason in result.reasons):
            goes_on = all(stage.optimizer.course is not None for stage in spec.stages[1:])
        if result.outcome == "inconclusive" and goes_on:
            return None
        return super().stops(result, spec)

    def run(self) -> CheckResult:
        """Re-run all windows, or a random sample of them."""
        threshold = self.options.threshold or threshold_of(self.rerun.trajectory.header.parameters)
        details = [*self._data(), *self._gaps()]
        if _failed(details):
            return self.result("fail", _why(details), threshold=threshold, details=details)
        details += [self._deployed(), *self._seams()]
        if self._boundaries_only():
            return self.result(
                "fail" if _failed(details) else "inconclusive",
                _why(details)
                or [message("no-steps-to-re-run"), *_checkpoints(self.rerun.trajectory.header)],
                threshold=threshold,
                details=details,
            )
        landed, windows = self._re_run()
        rerun = list(self._judged(landed, threshold))
        details += rerun
        worst = max((math.inf if d.statistic is None else d.statistic for d in rerun), default=0.0)
        missed = 1 - len(landed) / windows if windows else 1.0
        outcome: Outcome = (
            "fail" if _failed(details) else "inconclusive" if _open(details) else "pass"
        )
        reasons = _why(details) or [
            message("windows-re-run", rerun=len(landed), windows=windows, deviation=float(worst)),
            *_checkpoints(self.rerun.trajectory.header),
            *([] if any(w.lands for w in landed) else [message("none-lands-bitwise")]),
            *([message("altered-window-missed", probability=missed)] if missed else []),
        ]
        return self.result(
            outcome,
            reasons,
            statistic=worst if math.isfinite(worst) else None,
            threshold=threshold,
            gradients=self.windows.gradients,
            coverage=1 - missed,
            details=details,
        )

    def _re_run(self) -> tuple[Sequence[Window], int]:
        """Re-run what nobody has; the windows that were re-run, and how many there are."""
        record, windows = self.rerun.trajectory, self.windows
        windows.draw(record, self.options.windows)
        left = windows.left()
        total = sum(stop - start for _, start, stop in left)
        with self.progress.phase("re-running the record", total) as advance:
            windows.rerun_all(self.rerun, left, advance)
        return windows.in_order(record), sum(1 for _ in record.windows())

    def _judged(self, windows: Sequence[Window], threshold: float) -> Iterator[CheckDetail]:
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
                note = message("others-alike-are-bitwise", windows=alike)
            elif off and witnesses:
                outcome = "inconclusive"
                note = message("others-unlike-are-bitwise", windows=len(witnesses))
            yield CheckDetail(
                subject=window.subject,
                stage=window.stage,
                outcome=outcome,
                statistic=off if math.isfinite(off) else None,
                notes=() if note is None else (note,),
            )

    def _data(self) -> Iterator[CheckDetail]:
        """The data sets that the ids point into, by digest."""
        recorded: dict[str, set[str]] = {}
        for stage in self.rerun.trajectory.stages:
            for name, digest in stage.datasets.items():
                recorded.setdefault(name, set()).add(digest)
        for name, digests in recorded.items():
            dataset = self.rerun.datasets.get(name)
            same = dataset is not None and digests == {dataset.digest}
            note = message("the-data-trained-on") if same else message("not-the-data-trained-on")
            yield CheckDetail(
                subject=f"data set {name}", outcome="pass" if same else "fail", notes=(note,)
            )

    def _gaps(self) -> Iterator[CheckDetail]:
        """Stages that the record does not hold from end to end."""
        for stage in self.rerun.trajectory.stages:
            try:
                states, planned = stage.state_steps, stage.header.steps
                bounds = bool(states) and (states[0], states[-1]) == (0, planned)
                steps = planned if self._boundaries_only() else len(stage.steps)
                whole = stage.header.complete and bounds and steps == planned
                note = message("steps-and-states", steps=steps, planned=planned, states=states)
            except EvidenceError as error:
                whole, note = False, message("failed", error=error.message)
            if not whole:
                note = message("not-from-end-to-end", reasons=note)
                yield CheckDetail(subject=stage.id, outcome="fail", notes=(note,))

    def _deployed(self) -> CheckDetail:
        try:
            recorded = recorded_end(self.rerun)
        except EvidenceError as error:
            note = message("failed", error=error.message)
            return CheckDetail(subject=SUBJECT, outcome="fail", notes=(note,))
        return compare(self.deployed, recorded)

    def _seams(self) -> Iterator[CheckDetail]:
        stages = self.rerun.trajectory.stages
        for index, after in enumerate(stages):
            before = stages[index - 1] if index else None
            off, wrong = 0.0, None
            try:
                first, left = after.first, None
                if before is not None:
                    left = self.rerun.carry_over(index, before.last)
                    off = distance(first, left)
                    wrong = self._made_otherwise(index, first)
                if after.header.boundary == "carry":
                    optimizer_state = left.optimizer_state if left is not None else {}
                elif after.header.boundary == "given":
                    optimizer_state = first.optimizer_state
                    if before is not None and self._carried_after_all(index, before.last, first):
                        wrong = message("optimizer-state-carried")
                else:
                    optimizer = self.rerun.optimizer(after)
                    optimizer_state = fresh_moments(self.rerun.model, optimizer)
                problem = wrong
                if problem is None and off:
                    problem = message("begins-elsewhere")
                elif problem is None and not same_moments(optimizer_state, first.optimizer_state):
                    problem = message("other-optimizer-state", boundary=after.header.boundary)
            except (EstimationError, EvidenceError) as error:
                problem, off = message("failed", error=error.message), math.inf
            given = after.header.boundary == "given"
            if before is None and problem is None and not given:
                continue
            yield CheckDetail(
                subject=f"{before.id} to {after.id}" if before else f"start of {after.id}",
                outcome="fail" if problem else "pass",
                statistic=off if math.isfinite(off) else None,
                notes=(
                    problem or message("begins-where-before-ended"),
                    *([message("optimizer-state-given", stage=after.id)] if given else ()),
                ),
            )

    def _carried_after_all(self, index: int, left: State, first: State) -> bool:
        """Whether optimizer state that is said to be given is what the stage before left."""
        begun = self.rerun.changes.begun(index, left, self.rerun.dtype)
        return same_moments(begun.optimizer_state, first.optimizer_state)

    def _made_otherwise(self, index: int, first: State) -> Message | None:
        """What the change of the model before a stage does not make as it is recorded, if anything.

        Values that owe nothing to training may be drawn otherwise by another version of torch or kind
        of device; they are the same in both worlds of every effect.
        """
        header, record = self.rerun.trajectory.stages[index].header, self.rerun.trajectory.header
        if header.extend is None or not index:
            return None
        again = self.rerun.changes.check(index)
        alike = record.versions.get("torch") == torch.__version__
        alike &= torch.device(record.device).type == self.rerun.device.type
        odd = [
            name
            for name, value in (first.parameters | first.buffers).items()
            if (alike or name not in header.added) and not explained(again[name], value)
        ]
        if not odd:
            return None
        return message("made-otherwise", function=header.extend.name, tensors=odd)

    def _boundaries_only(self) -> bool:
        return self.rerun.trajectory.grade == "boundaries"


def _checkpoints(header: RecordHeader) -> list[Message]:
    """How close a run that was made again came to what the run itself had saved."""
    if header.regenerated is None:
        return []
    again = header.regenerated
    if again.missed:
        return [
            message("checkpoint-missed", stage=again.missed[0].stage, step=again.missed[0].step)
        ]
    return [
        message(
            "checkpoints-met",
            checkpoints=len(again.checkpoints),
            bitwise=sum(checkpoint.bitwise for checkpoint in again.checkpoints),
            deviation=again.farthest.deviation,
        )
    ]


def _failed(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "fail"]


def _open(details: list[CheckDetail]) -> list[CheckDetail]:
    return [detail for detail in details if detail.outcome == "inconclusive"]


def _why(details: list[CheckDetail]) -> list[Message]:
    lines = _failed(details) or _open(details)
    reasons = [_deviates(d) for d in lines[:3]]
    if len(lines) > 3:
        reasons.append(message("and-more", lines=len(lines) - 3))
    if lines and not _failed(details):
        reasons.append(message("accept-other-rounding"))
    return reasons


def _deviates(detail: CheckDetail) -> Message:
    notes = detail.notes
    if detail.statistic is not None:
        notes = (*notes, message("deviates", deviation=detail.statistic))
    notes = notes or (message("not-finite"),)
    return message("check-line", subject=detail.subject, notes=notes)
