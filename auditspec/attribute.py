"""From a record that is to be trusted to effects: estimate, read, spot-check, resample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.reading import Reader, Scores
from auditspec.checks.sampling import Interval, Sample, intervals
from auditspec.confidence import Subject, checks_on
from auditspec.confirm import confirm
from auditspec.counterfactuals import Store, baseline, counterfactuals, twins_of
from auditspec.errors import EstimationError
from auditspec.estimator.adjoint import adjoint
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.kept import KeptGradients
from auditspec.estimator.plan import Choice, choose
from auditspec.estimator.segments import Declared
from auditspec.progress import SILENT, Progress
from auditspec.readings import Ends, Reading, read, read_ends, with_steady_errors
from auditspec.record.rerun import Rerun
from auditspec.record.state import State
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


def attribute(
    spec: Spec,
    rerun: Rerun,
    reader: Reader,
    progress: Progress = SILENT,
    *,
    repeat: bool = False,
    store: Store | None = None,
    kept: KeptGradients | None = None,
    declared: Mapping[str, Declared] | None = None,
) -> Attribution:
    """Estimate every stage's effect on every behaviour.

    Args:
        spec: names the method, its budget, the behaviours, and the options of the checks.
        rerun: the record, on the device and in the precision of the estimate.
        reader: reads the spec's behaviours.
        progress: told of the long phases.
        repeat: compare with the run repeated here, since re-running it is not bitwise the record.
        store: finished estimates; None: everything is computed anew.
        kept: recorded gradients that the check of the record computed.
        declared: what the spec says of the stages' learning rates, for krylov.

    Raises:
        EstimationError: if no estimate can be made.
        EvidenceError: if a record or data set turns out to be damaged.
    """
    budget, paid = spec.estimator.budget.gradients, kept.stages if kept is not None else ()
    known = declared or {}
    choices = choose(rerun.trajectory, spec.estimator.method, budget, paid, known)
    run = baseline(rerun, repeat=repeat, progress=progress, store=store)
    deployed, base = reader.plug_in(rerun.trajectory.stages[-1].last), reader.plug_in(run.final)
    refuse_another_model(reader, spec, deployed, base)
    found = counterfactuals(
        rerun, run, choices, progress, budget=budget, store=store, kept=kept, declared=known
    )
    twins = attempt(
        lambda: twins_of(
            rerun, run, choices, found, progress, budget=budget, store=store, kept=kept
        )
    )
    left_out: list[str] = []
    if isinstance(twins, NotRun):
        left_out.append(f"no twin of the estimate: {twins.reason}")
        twins = {}
    readings = with_steady_errors(
        {stage: read(reader, run.final, base, c, twins.get(stage)) for stage, c in found.items()}
    )
    confirmed = confirm(spec, reader, run, base, choices, readings, progress, store)
    samples = _samples(reader, base, confirmed.readings, confirmed.errors)
    ends = read_ends(reader)
    made: tuple[Contribution, ...] = ()
    spent = 0.0
    if spec.estimator.contributions:
        followed = attempt(lambda: contributions(rerun, reader, run.final, progress))
        if isinstance(followed, NotRun):
            left_out.append(f"no contributions: {followed.reason}")
        else:
            made, spent = followed
    with progress.phase("resampling the evaluation examples"):
        held = intervals(samples, spec.checks.sampling, spec.checks.seed)
    subject = Subject(spec, reader, run, base, confirmed, samples, held, ends)
    checks = checks_on(subject, progress)
    return Attribution(
        values={name: float(scores.mean()) for name, scores in deployed.items()},
        examples={name: len(scores) for name, scores in base.items()},
        estimates=tuple(
            _estimate(c, confirmed.readings[c.stage].counterfactual, left_out)
            for c in confirmed.choices
        ),
        effects=_effects(samples, confirmed.readings, base, held, ends),
        checks=checks,
        gradients=round(
            sum(c.gradients for c in (*found.values(), *twins.values()) if not c.cached)
            + sum(check.gradients for check in checks)
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
    found_slopes = reader.slopes(final)
    slopes = {n: s for n, s in found_slopes.items() if not isinstance(s, NotRun)}
    if not slopes and (failed := [s for s in found_slopes.values() if isinstance(s, NotRun)]):
        raise EstimationError(f"no behaviour has a slope: {failed[0].reason}")
    if not slopes:
        return (), 0.0
    total = sum(len(stage.steps) for stage in rerun.trajectory.stages)
    with progress.phase("following the behaviours back", total) as advance:
        found = adjoint(rerun, slopes, visit=lambda *_: advance(1))
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


def _samples(
    reader: Reader,
    base: dict[str, Scores],
    readings: dict[str, Reading],
    errors: dict[str, NDArray[np.float64]],
) -> list[Sample]:
    found = {n: np.stack([r.effects[n] for r in readings.values()], axis=1) for n in base}
    return [
        Sample(
            behavior=name,
            dataset=part.behavior.data,
            ids=part.ids,
            effects=found[name],
            errors=errors[name],
            # a custom metric may score 0 or 1 without saying so
            binary=part.binary or is_binary(base[name][:, None], base[name][:, None] - found[name]),
            sign=1.0 if part.behavior.concern.direction == "increase" else -1.0,
            tolerance=part.behavior.concern.tolerance,
        )
        for name, part in reader.slices.items()
    ]


def _effects(
    samples: Sequence[Sample],
    readings: dict[str, Reading],
    base: dict[str, Scores],
    held: Mapping[str, Interval],
    ends: Ends,
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
                    linear=_mean(reading.linear.get(sample.behavior)),
                    exact=reading.counterfactual.exact,
                )
            )
    return tuple(effects)


def is_binary(*scores: NDArray[np.float64]) -> bool:
    """Whether every score is 0 or 1."""
    return all(bool(np.isin(s, (0.0, 1.0)).all()) for s in scores)


def _mean(scores: Scores | None) -> float | None:
    return None if scores is None else float(scores.mean())


def _estimate(choice: Choice, c: Counterfactual, left_out: Sequence[str]) -> Estimate:
    return Estimate(
        stage=choice.stage,
        method=c.method,
        exact=c.exact,
        reason=choice.reason,
        gradients=c.gradients,
        seconds=round(c.seconds, 3),
        cached=c.cached,
        note="; ".join([*([c.note] if c.note else []), *left_out]),
        displacement=c.displacement,
    )
