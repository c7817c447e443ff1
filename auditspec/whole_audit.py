"""What a whole audit takes here: what it will do, counted, times what each of these things took when it was measured.

    seconds = start + gradients x pace + light steps x theirs + readings x reading + slopes x slope
    memory  = the larger of the audit's process and the code's, on the host

What is done is counted off the record and the spec: gradients of the record's re-run, of estimates with their twins, and of the
checks; the evaluation data, read once for every state that the audit looks at. Runs that a verdict asks for beyond those
without one stage are not known before, and not in it; nor is the drawing of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from auditspec.beginnings import CHANGES, STARTS
from auditspec.budget import PRECISIONS, Allotment
from auditspec.checks.placebo import ENOUGH
from auditspec.estimator.forecast import Pace, gradients_of, interiors, state_bytes
from auditspec.estimator.interface import Forecast, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.linear.tangent import FirstOrder
from auditspec.estimator.off_path import GRID
from auditspec.estimator.plan import Choice
from auditspec.estimator.prefixes import Prefixes
from auditspec.how_much import is_large, most_examples, most_steps
from auditspec.record.trajectory import Trajectory
from auditspec.sealed.witness import MOST_ROOM, ROOM, SAMPLED
from auditspec.spec.models import GivenStart, Spec

WIDE = 2.0
"""What float64 takes, in units of float32."""
LOSSES_OFF_PATH = len(GRID) + 16
"""Forward passes of a stage's objective off the recorded path: the grid, two searches in it, and four for the slopes."""
OUTPUTS_OFF_PATH, EXAMPLES_OFF_PATH = 41, 16
"""The same of what `predict` gives, for the first few examples of each behaviour."""
KINDS = 5
"""States in a sample of what is asked of the code: an objective's with its gradient, without, and row by row; a metric's."""


@dataclass(frozen=True)
class Measured:
    """What an audit's parts took here."""

    pace: Pace
    start: float
    """Seconds until the code is there."""
    reading: float
    """Seconds of reading every behaviour on all of its examples at one state."""
    slope: float
    """Seconds of reading the slope of every differentiable behaviour along one displacement."""
    resident: int
    """Bytes that the audit's process holds before it has a model."""
    light: Mapping[str, float]
    """Seconds of a light step of each estimator that makes some, by its name."""
    code: int
    """Most bytes that the code's process held in a step and in a reading; 0 where it is the audit's."""
    own: int = 0
    """Most bytes that the audit's process held in these."""


@dataclass(frozen=True)
class WholeAudit:
    """What an audit takes."""

    gradients: float
    """At most: where the stage that leads is not the first, fewer steps are tried without it."""
    readings: float
    """Of every behaviour on all of its examples."""
    seconds: float
    memory: float
    """Most bytes of a process."""
    disk: int
    """Most bytes of cache and journal."""


def whole_audit(
    spec: Spec,
    record: Trajectory,
    found: tuple[Allotment, Sequence[Choice], Terms],
    measured: Measured,
    examples: Sequence[int],
) -> WholeAudit:
    """What an audit takes.

    Args:
        spec: says which checks are made.
        record: the trainer's.
        found: how the budget is shared out, the estimator of every stage, and on which terms.
        measured: what its parts took here.
        examples: of each behaviour.
    """
    allotment, choices, terms = found
    arms = Arm.each(choice.stage for choice in choices[:-1])
    estimator = choices[0].estimator
    forecast, twins = estimator.forecast(record, arms, terms), 1.0
    exact = estimator.exact or forecast.gradients >= _replayed(record)
    if not exact and estimator.twin() is not None:
        twins = estimator.with_twin
    later = len(record.stages) - 1
    light = forecast.light
    if twins > 1 and (twin := estimator.twin()) is not None:
        light += twin.forecast(record, arms, terms).light
    gradients = forecast.gradients * twins + allotment.fidelity - _too_many(spec, record)
    off_path = later * (LOSSES_OFF_PATH / 3 + 2)
    readings = _readings(spec, record, arms, examples, exact=exact)
    sloped = isinstance(estimator, FirstOrder) or not is_large(record)
    slopes = len(record.stages) if sloped else 0
    seconds = (
        measured.start
        + (gradients + off_path) * _mean_pace(record, measured.pace)
        + light * measured.light.get(estimator.name, 0.0)
        + readings * measured.reading
        + slopes * measured.slope
    )
    prefixes = Prefixes(record, arms, {})
    held = _held(spec, record, prefixes, forecast, measured, passages=1 if exact else 2)
    disk = forecast.disk + state_bytes(record)[0]  # of the last stage's arm, which nobody computes
    memory = max(held, float(measured.code))
    return WholeAudit(gradients + off_path, readings, seconds, memory, disk)


def _too_many(spec: Spec, record: Trajectory) -> float:
    """What a budget puts aside for steps in two precisions, beyond those that the longest later stage has."""
    precision = spec.checks.precision
    if precision.examples == 0 or spec.estimator.dtype == "float64":
        return 0.0
    longest = max((len(stage.steps) for stage in record.stages[1:]), default=0)
    return float(PRECISIONS * max(most_steps(precision.steps, record) - longest, 0))


def _replayed(record: Trajectory) -> float:
    return float(sum(i * gradients_of(stage) for i, stage in enumerate(record.stages)))


def _mean_pace(record: Trajectory, pace: Pace) -> float:
    counts = {stage.id: gradients_of(stage) for stage in record.stages}
    whole = sum(counts.values())
    return sum(n * pace.seconds[s] for s, n in counts.items()) / whole if whole else 0.0


def _readings(
    spec: Spec, record: Trajectory, arms: Sequence[Arm], examples: Sequence[int], *, exact: bool
) -> float:
    """How often the evaluation data is read, in readings of all of it in the audit's precision."""
    stages, whole = len(record.stages), max(sum(examples), 1)

    def part(most: int) -> float:
        return sum(min(most, n) for n in examples) / whole

    changes = sum(stage.header.extend is not None for stage in record.stages[1:])
    drawn = 0 if isinstance(spec.model.initial, GivenStart) else STARTS
    recorded = 2 + (1 + stages + changes) + drawn + CHANGES * changes
    interior, _ = interiors(Prefixes(record, arms, {}))
    each = 1 if exact else 2
    read = stages * (1 if exact else 3) + each * interior
    placebo, precision = spec.checks.placebo, spec.checks.precision
    draws = ENOUGH if placebo.draws is None else placebo.draws
    total = (
        recorded
        + read
        + OUTPUTS_OFF_PATH * part(min(EXAMPLES_OFF_PATH, most_examples(None, record)))
    )
    total += (2 + draws * stages) * part(most_examples(placebo.examples, record)) if draws else 0.0
    if precision.examples != 0 and spec.estimator.dtype != "float64":
        wide = 1 + stages + (2 if most_steps(precision.steps, record) else 0)
        total += WIDE * wide * part(most_examples(precision.examples, record))
    return total


def _held(
    spec: Spec,
    record: Trajectory,
    prefixes: Prefixes,
    forecast: Forecast,
    measured: Measured,
    *,
    passages: int,
) -> float:
    """Bytes that the audit's process holds at most.

    Beside what it holds before it has a model: two models; recorded states that are mapped; and the largest of what it takes
    to draw the first weights again, to estimate, and to train in two precisions beside the estimates. Where the code has a
    process of its own, what goes over and comes back, in both precisions, and a sample of it that is asked again.
    """
    weights, moments = state_bytes(record)
    interior, _ = interiors(prefixes)
    kept = passages * weights * (interior + len(record.stages))
    wide = spec.checks.precision.examples != 0 and spec.estimator.dtype != "float64"
    # a model in float64, where its steps begin and end in both, and their moments
    two = WIDE * weights * 3 + 2 * weights + moments * (2 * WIDE + 1) if wide else 0.0
    drawn = 0 if isinstance(spec.model.initial, GivenStart) else STARTS + 1
    phases = max(drawn * weights, forecast.memory, kept + two)
    common = 2 * weights + (3 * weights + 2 * moments) + phases
    if not measured.code:
        return max(measured.own, measured.resident + common)
    across = weights * (5 + (5 if wide else 0))
    size = 2 * weights
    sampled = 0 if size > MOST_ROOM else min(SAMPLED, max(ROOM // size, 1)) if size else 0
    return measured.resident + common + across + KINDS * sampled * weights
