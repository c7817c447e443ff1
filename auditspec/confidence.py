"""How far an estimate can be trusted: every check on it, from refinement to placebo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.evaluate import Evaluator, Scores
from auditspec.checks.additivity import Account, Additivity
from auditspec.checks.interface import Check
from auditspec.checks.linearity import Linearity, TwoReadings
from auditspec.checks.off_path import OffPathCheck
from auditspec.checks.placebo import Drawn, Placebo, enough
from auditspec.checks.precision import Precision, TwoPrecisions
from auditspec.checks.refinement import Refinement
from auditspec.checks.sampling import Interval, Sample, SamplingCheck
from auditspec.checks.spot_check import SpotCheck
from auditspec.counterfactuals import Baseline
from auditspec.effects import Ends, StageEffects
from auditspec.engine.rerun import Rerun
from auditspec.estimator.off_path import off_path
from auditspec.estimator.placebo import placebos
from auditspec.progress import SILENT, Progress
from auditspec.record.state import State
from auditspec.results import CheckResult
from auditspec.spec.models import Spec
from auditspec.spot_checks import Confirmed, leading

MOST_DRAWS = 1000
"""Placebos of a stage, unless the spec asks for more."""
ON_ESTIMATES = (
    Refinement,
    SpotCheck,
    SamplingCheck,
    Linearity,
    Precision,
    Additivity,
    Placebo,
    OffPathCheck,
)


@dataclass(frozen=True)
class Subject:
    """What the checks look at: one audit's estimates, read."""

    spec: Spec
    reader: Evaluator
    run: Baseline
    base: dict[str, Scores]
    """gamma(theta_K) per example, by behaviour."""
    confirmed: Confirmed
    samples: Sequence[Sample]
    intervals: Mapping[str, Interval]
    ends: Ends

    @property
    def readings(self) -> dict[str, StageEffects]:
        """Of every stage, in order."""
        return self.confirmed.readings


def checks_on(subject: Subject, progress: Progress = SILENT) -> tuple[CheckResult, ...]:
    """Every check on an estimate, in the order in which a reader asks.

    One that fails to run says so, and takes no other down with it. Where it is a gate of the estimate,
    that bars its verdicts; a reading that only describes is left out of its check.

    Raises:
        EvidenceError: if the evidence turns out to be damaged.
    """
    options, stages = subject.spec.checks, list(subject.readings)
    unreliable = {stage: reading.unreliable for stage, reading in subject.readings.items()}
    refinement = Refinement(subject.samples, stages, options.refinement, unreliable)

    def linearity() -> CheckResult:
        unread = _without_slope(subject)
        return Linearity(list(_two_readings(subject)), options.linearity, unread).run()

    def additivity() -> CheckResult:
        return Additivity(list(_accounts(subject)), options.additivity).run()

    def guarded(check: type[Check], run: Callable[[], CheckResult]) -> CheckResult:
        found = attempt(run)
        return check.skipped(found.reason) if isinstance(found, NotRun) else found

    with progress.phase("checking the precision"):
        precise = guarded(Precision, lambda: _precision(subject))
    return (
        guarded(Refinement, refinement.run),
        subject.confirmed.check,
        guarded(
            SamplingCheck, SamplingCheck(subject.samples, subject.intervals, options.sampling).run
        ),
        guarded(Linearity, linearity),
        precise,
        guarded(Additivity, additivity),
        guarded(Placebo, lambda: _placebo(subject, progress)),
        guarded(OffPathCheck, lambda: _off_path(subject)),
    )


def skipped(why: str) -> tuple[CheckResult, ...]:
    """The results of all of them where there is no estimate to check."""
    return tuple(check.skipped(why) for check in ON_ESTIMATES)


def _tolerances(spec: Spec) -> dict[str, float]:
    return {behavior.id: behavior.concern.tolerance for behavior in spec.behaviors}


def _two_readings(subject: Subject) -> Iterator[TwoReadings]:
    tolerances = _tolerances(subject.spec)
    for stage, reading in subject.readings.items():
        for behavior, slope in reading.linear.items():
            yield TwoReadings(
                stage=stage,
                behavior=behavior,
                plug_in=reading.plug_in[behavior],
                linear=slope,
                tolerance=tolerances[behavior],
                first_order=reading.counterfactual.method == "first-order",
            )


def _without_slope(subject: Subject) -> list[tuple[str, str]]:
    """Stages and behaviours of first-order estimates that could not be read linearly."""
    return [
        (stage, behavior)
        for stage, reading in subject.readings.items()
        for behavior in reading.effects
        if reading.counterfactual.method == "first-order" and behavior not in reading.linear
    ]


def _accounts(subject: Subject) -> Iterator[Account]:
    first = subject.ends[next(iter(subject.readings))]
    for behavior, tolerance in _tolerances(subject.spec).items():
        end = float(subject.base[behavior].mean())
        yield Account(
            behavior=behavior,
            total=end - float(first[0][behavior].mean()) if first else None,
            effects=tuple(float(r.effects[behavior].mean()) for r in subject.readings.values()),
            tolerance=tolerance,
        )


def _precision(subject: Subject) -> CheckResult:
    options, rerun = subject.spec.checks.precision, subject.reader.rerun
    if not options.examples:
        return Precision.skipped(
            "the spec asks for no float64 examples (checks.precision.examples: 0)"
        )
    if rerun.dtype == torch.float64:
        return Precision([], 0, 0.0, options).run()

    def repeated(dtype: torch.dtype | None, other: Callable[[State], State]) -> Precision:
        beside = Rerun(
            rerun.trajectory, rerun.functions, rerun.datasets, device=rerun.device, dtype=dtype
        )
        before = rerun.gradients
        reader, rows = subject.reader.thinned(beside, options.examples)
        readings = _readings_twice(subject, reader, rows, other)
        pairs = [*readings, *_first_steps(subject, reader, readings, other)]
        cost = float(beside.gradients + rerun.gradients - before)
        return Precision(pairs, max(len(kept) for kept in rows.values()), cost, options)

    found = attempt(lambda: repeated(torch.float64, lambda state: state))
    if isinstance(found, NotRun):
        why, found = found.reason, repeated(rerun.dtype, _neighbour)
        found.without_float64 = why
    return found.run()


def _readings_twice(
    subject: Subject,
    reader: Evaluator,
    rows: Mapping[str, NDArray[np.int64]],
    other: Callable[[State], State],
) -> list[TwoPrecisions]:
    """Every effect as it was read, and by another reader of the same examples."""
    base = reader.plug_in(other(subject.run.final))
    again = {
        stage: {
            behavior: float((base[behavior] - without).mean())
            for behavior, without in reader.plug_in(other(reading.counterfactual.state)).items()
        }
        for stage, reading in subject.readings.items()
    }
    unit = torch.finfo(subject.reader.rerun.dtype or torch.float32).eps
    found = []
    for behavior, tolerance in _tolerances(subject.spec).items():
        part, size = reader.slices[behavior], float(np.abs(base[behavior]).mean())
        grain = (
            1 / len(part.ids) if part.metric.binary else unit * size
        )  # no change that says anything
        largest = max(abs(effects[behavior]) for effects in again.values())
        scale = max(largest, tolerance, grain / subject.spec.checks.precision.threshold)
        found += [
            TwoPrecisions(
                subject=f"reading of {stage} / {behavior}",
                narrow=float(reading.plug_in[behavior][rows[behavior]].mean()),
                wide=again[stage][behavior],
                scale=scale,
                stage=stage,
                behavior=behavior,
            )
            for stage, reading in subject.readings.items()
        ]
    return found


def _first_steps(
    subject: Subject,
    reader: Evaluator,
    readings: Sequence[TwoPrecisions],
    other: Callable[[State], State],
) -> Iterator[TwoPrecisions]:
    """What the first steps without the leading stage make of the behaviours, in both precisions.

    Where the model of those steps cannot be read, having another head, their last loss is compared. The
    last stage is passed over, after which no step is made. Under autocast, whose rounding is part of
    the training that is repeated, none is made in float64.
    """
    rerun = subject.reader.rerun
    last = rerun.trajectory.stages[-1].id
    stages = [s for s in leading(subject.spec, subject.readings, estimated=False) if s != last]
    if not stages:
        return
    stage = stages[0]
    index = rerun.trajectory.index(stage)
    after = rerun.trajectory.stages[index + 1]
    steps = min(subject.spec.checks.precision.steps, len(after.steps))
    if not steps or after.header.autocast is not None:
        return
    start = subject.run.starts.get(stage, rerun.trajectory.stages[index].first)
    begin = rerun.carry_over(index + 1, start)

    def made(engine: Rerun, begin: State) -> tuple[State, list[float]]:
        losses: list[float] = []
        end = engine.run(
            after, begin, 0, steps, visit=lambda step_gradient: losses.append(step_gradient.loss)
        )
        return end, losses

    (narrow, lost), (wide, lost_wide) = made(rerun, begin), made(reader.rerun, other(begin))
    read = attempt(lambda: (reader.plug_in(narrow, after), reader.plug_in(wide, after)))
    if isinstance(read, NotRun):
        yield TwoPrecisions(
            subject=f"loss after {steps} steps of {after.id} without {stage}",
            narrow=lost[-1],
            wide=lost_wide[-1],
            scale=max(map(abs, lost_wide)),
            stage=stage,
        )
        return
    for pair in readings:
        if pair.stage == stage and pair.behavior is not None:
            yield replace(
                pair,
                subject=f"{pair.behavior} after {steps} steps of {after.id} without {stage}",
                narrow=float(read[0][pair.behavior].mean()),
                wide=float(read[1][pair.behavior].mean()),
            )


def _off_path(subject: Subject) -> CheckResult:
    """Along the run without the stage that leads, at the first step of every later stage."""
    rerun = subject.reader.rerun
    stages = rerun.trajectory.stages
    led = [
        s
        for s in leading(subject.spec, subject.readings, estimated=False)
        if subject.readings[s].counterfactual.path
    ]
    if not led:
        return OffPathCheck.skipped("no stage is trained in any run without another")
    arm = subject.readings[led[0]].counterfactual
    index = rerun.trajectory.index(led[0])
    state = subject.run.starts.get(led[0], stages[index].first)
    found = []
    for later, stage in enumerate(stages[index + 1 :], index + 1):
        begin = rerun.carry_over(later, state)
        recorded = subject.run.starts.get(stage.id, stage.first)
        if stage.steps:
            found.append(off_path(rerun, stage, stage.steps[0], recorded, begin))
        state = arm.path.get(stage.id, begin)
    return OffPathCheck(found, led[0]).run()


def _placebo(subject: Subject, progress: Progress) -> CheckResult:
    options, rerun, final = subject.spec.checks.placebo, subject.reader.rerun, subject.run.final
    cells = len(subject.readings) * len(subject.spec.behaviors)
    draws = enough(cells) if options.draws is None else options.draws
    if options.draws is None and draws > MOST_DRAWS:
        why = f"{cells} effects need {draws} draws of each stage (checks.placebo.draws: {draws})"
        return Placebo.skipped(why)
    if not draws:
        return Placebo.skipped("the spec asks for no draws (checks.placebo.draws: 0)")
    reader, rows = subject.reader.thinned(rerun, options.examples)
    base, tolerances = reader.plug_in(final), _tolerances(subject.spec)
    again = reader.plug_in(final)
    empty = {name: float((base[name] - again[name]).mean()) for name in base}
    drawn = []
    with progress.phase("reading placebos", draws * len(subject.readings)) as advance:
        for number, (stage, reading) in enumerate(subject.readings.items()):
            found: dict[str, list[float]] = {name: [] for name in base}
            delta, seed = reading.counterfactual.delta, subject.spec.checks.seed + number
            for moved in placebos(rerun, stage, delta, draws, seed):
                scores = reader.plug_in(_moved(final, moved))
                for name in base:
                    found[name].append(float((base[name] - scores[name]).mean()))
                advance(1)
            drawn += [
                Drawn(
                    stage=stage,
                    behavior=name,
                    effect=float(reading.plug_in[name][rows[name]].mean()),
                    draws=np.array(found[name]),
                    matters=abs(float(reading.effects[name].mean())) > tolerances[name],
                )
                for name in base
            ]
    return Placebo(drawn, empty).run()


def _neighbour(state: State) -> State:
    """Every floating parameter moved by one unit of its rounding, up or down at random."""
    draw = torch.Generator().manual_seed(0)

    def beside(p: Tensor) -> Tensor:
        ahead = torch.where(torch.rand(p.shape, generator=draw) < 0.5, math.inf, -math.inf)
        return torch.nextafter(p, ahead.to(p)) if p.is_floating_point() else p

    return replace(state, parameters={n: beside(p) for n, p in state.parameters.items()})


def _moved(state: State, delta: Mapping[str, Tensor]) -> State:
    parameters = {n: p + delta[n].to(p) if n in delta else p for n, p in state.parameters.items()}
    return State(parameters, state.buffers)
