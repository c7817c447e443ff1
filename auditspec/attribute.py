"""From a record that is to be trusted to effects: estimate, read, spot-check, resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auditspec.behaviors.reading import Reader, Scores
from auditspec.checks.sampling import Sample, SamplingCheck, intervals
from auditspec.checks.spot_check import (
    Comparison,
    SpotCheck,
    widened,
    worst_relative_error,
)
from auditspec.counterfactuals import (
    Baseline,
    Store,
    baseline,
    counterfactuals,
    replays,
    twins_of,
)
from auditspec.errors import EstimationError
from auditspec.estimator.adjoint import adjoint
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.estimator.paired import steadied, twin_error
from auditspec.estimator.plan import Choice, choose
from auditspec.progress import SILENT, Progress
from auditspec.record.extension import carried
from auditspec.record.rerun import Rerun
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory
from auditspec.results import CheckResult, Contribution, Effect, Estimate
from auditspec.spec.models import Spec

MAX_BINS = 200
"""Most bins that a stage's contributions are summed in."""


@dataclass(frozen=True)
class Attribution:
    """What estimating found; `values` is each behaviour's mean on the deployed model."""

    values: dict[str, float]
    examples: dict[str, int]
    estimates: tuple[Estimate, ...]
    effects: tuple[Effect, ...]
    checks: tuple[CheckResult, ...]
    gradients: float
    """Cost of everything together, in minibatch gradients."""
    contributions: tuple[Contribution, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One stage's counterfactual, read: effects per example of every behaviour."""

    counterfactual: Counterfactual
    effects: dict[str, Scores]
    """gamma(theta_K) - gamma(theta_K without S), [n]."""
    linear: dict[str, float]
    """Mean of -grad gamma . delta, for differentiable behaviours."""
    own: dict[str, float] | None
    """The estimator's own estimate of the effect's RMS error over examples; None where it has none."""
    rung: dict[str, float]
    """RMS over examples of the effect's distance to the rung below: the stage's displacement taken
    as it was at the stage's end, as if later stages had not changed it; 0 for an exact effect."""


def attribute(
    spec: Spec,
    rerun: Rerun,
    reader: Reader,
    progress: Progress = SILENT,
    *,
    repeat: bool = False,
    store: Store | None = None,
) -> Attribution:
    """Estimate every stage's effect on every behaviour.

    Args:
        spec: names the method, its budget, the behaviours, and the options of the checks.
        rerun: the record, on the device and in the precision of the estimate.
        reader: reads the spec's behaviours.
        progress: told of the long phases.
        repeat: compare with the run repeated here, since re-running it is not bitwise the record.
        store: finished estimates; None: everything is computed anew.

    Raises:
        EstimationError: if no estimate can be made.
        EvidenceError: if a record or data set turns out to be damaged.
    """
    choices = choose(rerun.trajectory, spec.estimator.method, spec.estimator.budget.gradients)
    run = baseline(rerun, repeat=repeat, progress=progress)
    deployed, base = reader.plug_in(rerun.trajectory.stages[-1].last), reader.plug_in(run.final)
    refuse_another_model(reader, spec, deployed, base)
    budget = spec.estimator.budget.gradients
    found = counterfactuals(rerun, run, choices, progress, budget=budget, store=store)
    twins = twins_of(rerun, run, choices, found, progress, budget=budget, store=store)
    readings = {
        stage: read(reader, run.final, base, c, twins.get(stage)) for stage, c in found.items()
    }
    readings = with_steady_errors(readings)
    choices, readings, spot_check, errors = _spot_check(
        spec, rerun, reader, run, base, choices, readings, progress, store
    )
    samples = _samples(reader, readings, errors)
    ends = {stage.id: _at_its_ends(reader, stage) for stage in rerun.trajectory.stages}
    made: tuple[Contribution, ...] = ()
    spent = 0.0
    if spec.estimator.contributions:
        made, spent = contributions(rerun, reader, run.final, progress)
    with progress.phase("resampling the evaluation examples"):
        held = intervals(samples, spec.checks.sampling, spec.checks.seed)
    return Attribution(
        values={name: float(scores.mean()) for name, scores in deployed.items()},
        examples={name: len(scores) for name, scores in base.items()},
        estimates=tuple(_estimate(c, readings[c.stage].counterfactual) for c in choices),
        effects=_effects(samples, readings, base, held, ends),
        checks=(spot_check, SamplingCheck(samples, held, spec.checks.sampling).run()),
        gradients=round(
            sum(c.gradients for c in (*found.values(), *twins.values()) if not c.cached)
            + spot_check.gradients
            + spent,
            3,
        ),
        contributions=made,
    )


def contributions(
    rerun: Rerun, reader: Reader, final: State, progress: Progress = SILENT
) -> tuple[tuple[Contribution, ...], float]:
    """When inside the stages each differentiable behaviour was made, and what that cost in gradients.

    Raises:
        UnsupportedError: if the adjoint does not cover this run.
    """
    slopes = reader.slopes(final)
    if not slopes:
        return (), 0.0
    total = sum(len(stage.steps) for stage in rerun.trajectory.stages)
    with progress.phase("following the behaviours back", total) as advance:
        found = adjoint(rerun, slopes, visit=lambda _: advance(1))
    made = []
    for behavior, held in found.items():
        for stage, terms in held.steps.items():
            first = np.arange(0, len(terms), -(-len(terms) // MAX_BINS) or 1)
            made.append(
                Contribution(
                    behavior=behavior,
                    stage=stage,
                    step=tuple(map(int, first)),
                    value=tuple(map(float, np.add.reduceat(terms, first))) if len(terms) else (),
                    total=float(terms.sum()),
                )
            )
    return tuple(made), sum(held.gradients for held in found.values())


def refuse_another_model(
    reader: Reader, spec: Spec, recorded: dict[str, Scores], repeated: dict[str, Scores]
) -> None:
    """Refuse to estimate where repeating the run leads to a model that behaves otherwise.

    Raises:
        EstimationError: if a behaviour of the repeated run differs from that of the recorded one by
            more than its tolerance.
    """
    for behavior in spec.behaviors:
        off = abs(float(recorded[behavior.id].mean() - repeated[behavior.id].mean()))
        if off > behavior.concern.tolerance:
            raise EstimationError(
                f"repeating the run in {reader.rerun.dtype} on {reader.rerun.device} moves "
                f"'{behavior.id}' by {off:.3g}, more than its tolerance: rounding decides it",
                "audit in the record's precision, on the kind of machine that trained",
            )


def read(
    reader: Reader,
    final: State,
    base: dict[str, Scores],
    c: Counterfactual,
    twin: Counterfactual | None = None,
) -> Reading:
    """Read one counterfactual, and its own error where it has a twin.

    The effect is plug-in, except that a first-order estimate of a differentiable behaviour is read
    linearly, as the score is defined.

    Raises:
        EstimationError: if the counterfactual diverged, or a behaviour cannot be read.
    """
    if not np.isfinite(c.displacement):
        raise EstimationError(
            f"the counterfactual without stage '{c.stage}' ({c.method}) diverges: its weights are "
            "not finite",
            "use estimator.method: replay"
            if not c.exact
            else "without this stage the later ones do not train; the effect is undefined",
        )
    without = reader.plug_in(c.state)
    slopes = {
        name: -by_stage[c.stage]
        for name, by_stage in reader.linear(final, {c.stage: c.delta}).items()
    }
    effects = {name: base[name] - scores for name, scores in without.items()}
    if c.method == "first-order":
        effects |= slopes
    rung = dict.fromkeys(effects, 0.0)
    if not c.exact:
        held = reader.plug_in(unpropagated(reader.rerun, final, c.stage))
        rung = {name: rms(scores - (base[name] - held[name])) for name, scores in effects.items()}
    own = None
    if twin is not None:
        second = reader.plug_in(twin.state)
        own = {
            name: twin_error(scores, base[name] - second[name]) for name, scores in effects.items()
        }
    linear = {n: float(scores.mean()) for n, scores in slopes.items()}
    return Reading(c, effects, linear, own, rung)


def with_steady_errors(readings: dict[str, Reading]) -> dict[str, Reading]:
    """The same readings, no stage's own error small by chance alone (`steadied`)."""
    stated = [
        (stage, name, error, rms(r.effects[name]))
        for stage, r in readings.items()
        for name, error in (r.own or {}).items()
    ]
    errors, sizes = (np.array([row[i] for row in stated], dtype=float) for i in (2, 3))
    own: dict[str, dict[str, float]] = {}
    for (stage, name, *_), error in zip(stated, steadied(errors, sizes), strict=True):
        own.setdefault(stage, {})[name] = float(error)
    return {s: replace(r, own=own[s]) if s in own else r for s, r in readings.items()}


def unpropagated(rerun: Rerun, final: State, stage: str) -> State:
    """theta_K + theta_a - theta_b: the stage's displacement, as if later stages kept it as it was."""
    index = rerun.trajectory.index(stage)
    recorded = rerun.trajectory.stages[index]
    moved = difference(recorded.first.parameters, recorded.last.parameters)
    for later in rerun.trajectory.stages[index + 1 :]:
        moved = carried(moved, later.origin)
    parameters = {n: p + moved[n].to(p) if n in moved else p for n, p in final.parameters.items()}
    return State(parameters, final.buffers)


def _at_its_ends(
    reader: Reader, stage: StageTrajectory
) -> tuple[dict[str, Scores], dict[str, Scores]] | None:
    """The behaviours of a stage's first and last state, read with its own model.

    None where that model cannot be read so: one with another head than the deployed one.
    """
    last = reader.rerun.trajectory.stages[-1]
    try:
        return reader.plug_in(stage.first, stage), reader.plug_in(stage.last, stage)
    except (EstimationError, IndexError, RuntimeError):
        if stage.parameters == last.parameters:
            raise
        return None


def rms(scores: Scores) -> float:
    """Root mean square over examples."""
    return float(np.sqrt(np.mean(scores**2)))


def _spot_check(
    spec: Spec,
    rerun: Rerun,
    reader: Reader,
    run: Baseline,
    base: dict[str, Scores],
    choices: tuple[Choice, ...],
    readings: dict[str, Reading],
    progress: Progress,
    store: Store | None = None,
) -> tuple[tuple[Choice, ...], dict[str, Reading], CheckResult, dict[str, NDArray[np.float64]]]:
    """Replay the leading estimated stages, compare, and take their exact effects from then on.

    The others' own error is the estimator's own estimate of it (paired replay's twin), times the factor
    by which the replayed stages exceeded theirs. Where it has none, it is the larger of two: the
    relative error seen in the replayed stages, and the distance to the rung below, that is all that
    linearising the later stages contributed; where nothing was replayed either, it is unknown.
    """
    wanted = _leading(spec, readings)[: spec.checks.spot_check.stages]
    exact, comparisons, gradients = dict(readings), [], 0.0
    chosen = [Choice(stage, "replay", 0, "spot check") for stage in wanted]
    for stage, counterfactual in replays(rerun, run, chosen, progress, store).items():
        exact[stage] = read(reader, run.final, base, counterfactual)
        if not counterfactual.cached:
            gradients += counterfactual.gradients
        comparisons += [
            compare(readings[stage], exact[stage], b.id, b.concern.tolerance)
            for b in spec.behaviors
        ]
    already = [s for s, r in readings.items() if r.counterfactual.exact]
    if wanted or len(already) == len(readings):
        check = SpotCheck(comparisons, already, gradients).run()
    else:
        check = SpotCheck.skipped("the spec asks for no spot check (checks.spot-check.stages: 0)")
    errors = {
        b.id: np.array([own_error(r, b.id, comparisons) for r in exact.values()])
        for b in spec.behaviors
    }
    taken = tuple(
        replace(c, method="replay", reason="replayed by the spot check; the exact effect is used")
        if c.stage in wanted
        else c
        for c in choices
    )
    return taken, exact, check, errors


def _leading(spec: Spec, readings: dict[str, Reading]) -> list[str]:
    """Estimated stages by how far they move any behaviour towards its concern, in tolerances."""
    reach: dict[str, float] = {}
    for behavior in spec.behaviors:
        sign = 1 if behavior.concern.direction == "increase" else -1
        for stage, reading in readings.items():
            if not reading.counterfactual.exact:
                moved = sign * float(reading.effects[behavior.id].mean())
                scaled = moved / max(behavior.concern.tolerance, 1e-12)
                reach[stage] = max(reach.get(stage, -np.inf), scaled)
    return sorted(reach, key=lambda stage: reach[stage], reverse=True)


def compare(estimated: Reading, exact: Reading, behavior: str, tolerance: float) -> Comparison:
    """A stage's estimated effect on a behaviour beside its exact one.

    The estimate's stated interval is two standard errors over examples, and the estimator's own
    estimate of its error, where it has one.
    """
    ours, theirs = estimated.effects[behavior], exact.effects[behavior]
    n = len(ours)
    spread = float(ours.std(ddof=1)) / np.sqrt(n) if n > 1 else 0.0
    norm, off = rms(theirs), rms(ours - theirs)
    own = estimated.own[behavior] if estimated.own is not None else None
    return Comparison(
        stage=exact.counterfactual.stage,
        behavior=behavior,
        estimate=float(ours.mean()),
        exact=float(theirs.mean()),
        half_width=2 * spread + (own or 0.0),
        tolerance=tolerance,
        relative_error=off / norm if norm else (0.0 if off == 0 else np.inf),
        error=off,
        own=own,
    )


def own_error(reading: Reading, behavior: str, comparisons: Sequence[Comparison]) -> float:
    """The estimator's own error of a stage's mean effect, in the metric's unit; infinite if unknown.

    Args:
        reading: the stage's effects, with the estimator's own word on their error where it has one.
        behavior: the behaviour's id.
        comparisons: what the spot check saw of the same estimator.
    """
    if reading.counterfactual.exact:
        return 0.0
    if reading.own is not None:
        return widened(reading.own[behavior], behavior, comparisons)
    relative = worst_relative_error(comparisons).get(behavior, np.inf)
    if not np.isfinite(relative):
        return np.inf
    return max(relative * rms(reading.effects[behavior]), reading.rung[behavior])


def _samples(
    reader: Reader, readings: dict[str, Reading], errors: dict[str, NDArray[np.float64]]
) -> list[Sample]:
    return [
        Sample(
            behavior=name,
            dataset=part.behavior.data,
            ids=part.ids,
            effects=np.stack([r.effects[name] for r in readings.values()], axis=1),
            errors=errors[name],
            binary=part.binary,
            sign=1.0 if part.behavior.concern.direction == "increase" else -1.0,
            tolerance=part.behavior.concern.tolerance,
        )
        for name, part in reader.slices.items()
    ]


def _effects(
    samples: Sequence[Sample],
    readings: dict[str, Reading],
    base: dict[str, Scores],
    held: Any,
    ends: dict[str, tuple[dict[str, Scores], dict[str, Scores]] | None],
) -> tuple[Effect, ...]:
    effects = []
    for sample in samples:
        interval = held[sample.behavior]
        for row, (stage, reading) in enumerate(readings.items()):
            value = float(sample.effects[:, row].mean())
            known = bool(np.isfinite(sample.errors[row]))
            end = ends[stage]
            effects.append(
                Effect(
                    behavior=sample.behavior,
                    stage=stage,
                    value=value,
                    counterfactual=float(base[sample.behavior].mean()) - value,
                    low=float(interval.low[row]) if known else None,
                    high=float(interval.high[row]) if known else None,
                    error=float(sample.errors[row]) if known else None,
                    leads=float(interval.leads[row]) if known else None,
                    before=float(end[0][sample.behavior].mean()) if end else None,
                    after=float(end[1][sample.behavior].mean()) if end else None,
                    linear=reading.linear.get(sample.behavior),
                    exact=reading.counterfactual.exact,
                )
            )
    return tuple(effects)


def _estimate(choice: Choice, c: Counterfactual) -> Estimate:
    return Estimate(
        stage=choice.stage,
        method=c.method,
        exact=c.exact,
        reason=choice.reason,
        gradients=c.gradients,
        seconds=round(c.seconds, 3),
        cached=c.cached,
        note=c.note,
        displacement=c.displacement,
    )
