"""From a record that is to be trusted to levels and effects: estimate, read, spot-check, resample, settle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from auditspec.attempt import NotRun, attempt
from auditspec.beginnings import look_at_beginnings
from auditspec.behaviors.evaluate import Evaluator, Scores
from auditspec.budget import TWIN, Allotment
from auditspec.checks.subject import Estimated
from auditspec.effects import Ends, StageEffects
from auditspec.engine.interface import Engine
from auditspec.errors import BudgetError, EstimationError
from auditspec.estimator.compute import baseline, chosen_counterfactuals, twins_of
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.forecast import replay_cost
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import RECORDED, Arm
from auditspec.estimator.linear.adjoint import adjoint
from auditspec.estimator.model_outputs import borrowed, depending
from auditspec.estimator.plan import (
    AUTO,
    Choice,
    choices_of,
    choose,
    estimators,
    expected,
    last_choice,
)
from auditspec.intervals import Interval, Sample, intervals
from auditspec.paths import PathEvaluator, Resampler
from auditspec.progress import SILENT, Progress
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory
from auditspec.results import (
    BehaviorResult,
    Contribution,
    Draws,
    Effect,
    Estimate,
    Method,
    PartyResult,
    Path,
    Tally,
)
from auditspec.runs import MadeRun, Maker, cost_of, read_runs
from auditspec.settle import settle
from auditspec.spec.models import Spec
from auditspec.spot_checks import confirm, unsettled

MAX_BINS = 200
"""Most bins that a stage's contributions are summed in."""


@dataclass(frozen=True)
class Attribution:
    """What estimating found."""

    behaviors: tuple[BehaviorResult, ...]
    parties: tuple[PartyResult, ...]
    paths: tuple[Path, ...]
    draws: tuple[Draws, ...]
    tallies: Mapping[str, tuple[Tally, ...]]
    """By behaviour."""
    methods: tuple[Method, ...]
    estimates: tuple[Estimate, ...]
    effects: tuple[Effect, ...]
    estimated: Estimated
    """What checks of the estimate look at."""
    gradients: float
    """Cost of everything together, in minibatch gradients."""
    contributions: tuple[Contribution, ...] = ()


def attribute(
    spec: Spec,
    reader: Evaluator,
    context: Context,
    allotment: Allotment,
    *,
    given: Mapping[str, Tensor] | None = None,
    repeat: bool = False,
) -> Attribution:
    """Read every behaviour along the recorded run and along every run that its verdict needs.

    Args:
        spec: names the method, the behaviours, and the options of the checks.
        reader: reads the spec's behaviours.
        context: what estimates are made of; its run is that of the record.
        allotment: what may be spent.
        given: the pinned first weights.
        repeat: compare with the run repeated here, since re-running it is not bitwise the record.

    Raises:
        EstimationError: if no estimate can be made.
        EvidenceError: if a record or data set turns out to be damaged.
    """
    rerun, trajectory, progress = context.engine, context.record, context.progress
    purse = allotment.purse()
    try:
        choices = choose(trajectory, spec.estimator.method, context)
    except BudgetError:
        if spec.estimator.method != AUTO:
            raise
        choices = ()  # what the verdicts ask for may be paid all the same
    run = baseline(rerun, repeat=repeat, progress=progress, store=context.store)
    context = replace(context, run=run)
    deployed, base = reader.plug_in(trajectory.stages[-1].last), reader.plug_in(run.final)
    refuse_another_model(reader, spec, deployed, base)
    lent = borrowed(rerun)
    unsure = depending(rerun, lent)
    labels = {name: artifact.label for name, artifact in spec.artifacts.items()}
    with progress.phase("reading the behaviours along the run"):
        paths = PathEvaluator(reader, run, labels, context.references, unsure)
        beginnings = look_at_beginnings(spec, reader, given)
    behaviors = tuple(_behavior(spec, n, paths, deployed, base) for n in range(len(spec.behaviors)))
    sampling = spec.checks.sampling
    resampler = Resampler(reader, sampling.verdicts, spec.checks.seed)
    maker = Maker(context, purse)
    walked = {RECORDED: paths.recorded}

    def settled() -> dict[str, tuple[Tally, ...]]:
        return settle(
            behaviors,
            beginnings.parties,
            beginnings.draws,
            paths,
            resampler,
            walked,
            lambda arms, exactly: maker.make(paths, arms, exactly),
            sampling.level,
        )

    left_out: list[str] = []
    estimator = expected(trajectory, spec.estimator.method, context.budget)
    if not choices or any(choice.estimator.budgeted for choice in choices):
        maker.estimator, maker.share = estimator, share_of(choices, trajectory)
        if spec.estimator.method == AUTO:  # first of all, what the verdicts ask for
            maker.exactly_first = True
            settled()
            choices, why = remaining(maker)
            left_out += why
    singles = {c.stage: maker.runs.get(Arm.without(c.stage)) for c in choices}
    found = {stage: run.counterfactual for stage, run in singles.items() if run is not None}
    twins = {s: r.twin for s, r in singles.items() if r is not None and r.twin is not None}
    missing = {c.stage: c.estimator for c in choices if c.stage not in found}
    shared = replace(
        context, budget=int(purse.left / TWIN) if maker.exactly_first else context.budget
    )
    estimated = chosen_counterfactuals(shared, missing)
    again = attempt(lambda: twins_of(shared, missing, estimated))
    if isinstance(again, NotRun):
        left_out.append(f"no twin of the estimate: {again.reason}")
        again = {}
    purse.spend(cost_of((*estimated.values(), *again.values())))
    found |= estimated
    twins |= again
    readings, diverged = read_runs(
        reader, base, {c.stage: found[c.stage] for c in choices}, twins, maker
    )
    choices = tuple(choice for choice in choices if choice.stage in readings)
    confirmed = unsettled(confirm(spec, reader, context, base, choices, readings, purse), unsure)
    samples = _samples(reader, base, confirmed.readings, confirmed.errors)
    made: tuple[Contribution, ...] = ()
    spent = 0.0
    if spec.estimator.contributions:
        followed = attempt(lambda: contributions(rerun, reader, run.final, progress))
        if isinstance(followed, NotRun):
            left_out.append(f"no contributions: {followed.reason}")
        else:
            made, spent = followed
    for stage, reading in confirmed.readings.items():
        arm = Arm.without(stage)
        if not reading.unreliable:  # otherwise the rule asks for it, and it is replayed
            made_by = next(c.estimator for c in confirmed.choices if c.stage == stage)
            maker.runs[arm] = MadeRun(made_by, reading.counterfactual, twins.get(stage))
            walked[arm] = paths.walk(reading.counterfactual, twins.get(stage))
    tallies = settled()
    with progress.phase("resampling the evaluation examples"):
        held = intervals(samples, sampling, spec.checks.seed)
    ends = _ends(paths)
    estimated_run = Estimated(
        reader=reader,
        run=run,
        base=base,
        confirmed=confirmed,
        diverged=diverged,
        samples=samples,
        intervals=held,
        ends=ends,
        beginnings=beginnings,
        borrowed=lent,
    )
    return Attribution(
        behaviors=behaviors,
        parties=beginnings.parties,
        paths=tuple(paths.path(walk, b.id) for b in behaviors for walk in walked.values()),
        draws=beginnings.draws,
        tallies=tallies,
        methods=_methods(confirmed.readings),
        estimates=tuple(
            _estimate(c, confirmed.readings[c.stage].counterfactual, left_out)
            for c in confirmed.choices
        ),
        effects=_effects(samples, confirmed.readings, base, held, ends),
        estimated=estimated_run,
        gradients=purse.spent + spent,
        contributions=made,
    )


def contributions(
    rerun: Engine, reader: Evaluator, final: State, progress: Progress = SILENT
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
    reader: Evaluator, spec: Spec, recorded: dict[str, Scores], repeated: dict[str, Scores]
) -> None:
    """Refuse to estimate where repeating the run leads to a model that behaves otherwise.

    Raises:
        EstimationError: if a behaviour of the repeated run differs from that of the recorded one by
            more than its tolerance.
    """
    for behavior in spec.behaviors:
        statistic = reader.slices[behavior.id].statistic
        off = abs(statistic.level(recorded[behavior.id]) - statistic.level(repeated[behavior.id]))
        if off > behavior.concern.tolerance:
            raise EstimationError(
                f"repeating the run in {reader.rerun.dtype} on {reader.rerun.device} moves "
                f"'{behavior.id}' by {off:.3g}, more than its tolerance: rounding decides it",
                "audit in the record's precision, on the kind of machine that trained",
            )


def share_of(choices: Sequence[Choice], trajectory: Trajectory) -> float:
    """Gradients of the estimates, in shares of exact replay's."""
    whole = sum(replay_cost(trajectory.stages).values())
    return min(1.0, sum(choice.gradients for choice in choices) / whole) if whole else 1.0


def remaining(maker: Maker) -> tuple[tuple[Choice, ...], list[str]]:
    """The choice for each stage once the runs that verdicts rest on are made: what is left of the purse
    pays for estimates of the others and their twins.

    Returns:
        The choices, and what had to be left out.
    """
    record = maker.context.record
    *others, last = (stage.id for stage in record.stages)
    chosen = {last: last_choice(record)}
    for arm, run in maker.runs.items():
        if len(arm.omitted) == 1 and not arm.replaced:
            exact = run.counterfactual.exact
            chosen[arm.stage] = Choice(
                arm.stage,
                run.estimator,
                run.counterfactual.gradients,
                "replayed, since a verdict rests on it"
                if exact
                else "a verdict asks for it, and the budget pays for no replay",
            )
    rest = [stage for stage in others if stage not in chosen]
    left_out = []
    reason = (
        "the runs that verdicts rest on are replayed; the rest of the budget pays for estimates"
    )
    try:
        terms = replace(maker.context, budget=int(maker.purse.left / TWIN))
        if rest and maker.estimator is not None:
            for choice in choices_of(maker.estimator, record, rest, terms, reason):
                chosen[choice.stage] = choice
    except EstimationError:
        left_out.append(
            f"no effect of {', '.join(rest)} was estimated: the budget went to the runs that verdicts rest on"
        )
    ordered = [chosen[stage.id] for stage in record.stages if stage.id in chosen]
    return tuple(ordered), left_out


def _behavior(
    spec: Spec,
    index: int,
    paths: PathEvaluator,
    deployed: dict[str, Scores],
    base: dict[str, Scores],
) -> BehaviorResult:
    behavior = spec.behaviors[index]
    skill = paths.skills[behavior.id]
    return described(spec, index).model_copy(
        update={
            "examples": len(base[behavior.id]),
            "value": paths.reader.slices[behavior.id].statistic.level(deployed[behavior.id]),
            "uninformed": paths.uninformed[behavior.id],
            "bounded": paths.bounded[behavior.id],
            "skill": skill.words if skill is not None else None,
        }
    )


def described(spec: Spec, index: int) -> BehaviorResult:
    """A behaviour as the spec states it, before anything is measured."""
    behavior = spec.behaviors[index]
    return BehaviorResult(
        id=behavior.id,
        description=behavior.description,
        metric=behavior.metric.words,
        statistic=behavior.statistic.words,
        unit=behavior.statistic.unit(behavior.metric.unit),
        data=behavior.data,
        where=behavior.where,
        concern=behavior.concern,
    )


def _ends(paths: PathEvaluator) -> Ends:
    """The behaviours where each stage began and ended."""
    scores = paths.recorded.scores
    before = scores.get("initial")
    ends: Ends = {}
    for index, stage in enumerate(paths.ids):
        first = scores.get(f"{stage}:start") if paths.changed(index) else before
        last = scores.get(f"{stage}:end")
        ends[stage] = (first, last) if first is not None and last is not None else None
        before = last
    return ends


def _samples(
    reader: Evaluator,
    base: dict[str, Scores],
    readings: dict[str, StageEffects],
    errors: dict[str, NDArray[np.float64]],
) -> list[Sample]:
    changes = {n: np.stack([r.effects[n] for r in readings.values()], axis=1) for n in base}
    return [
        Sample(
            behavior=name,
            dataset=part.behavior.data,
            ids=part.ids,
            deployed=base[name],
            changes=changes[name],
            errors=errors[name],
            statistic=part.statistic,
            # a custom metric may score 0 or 1 without saying so
            binary=part.metric.binary
            or is_binary(base[name][:, None], base[name][:, None] - changes[name]),
            concern=part.behavior.concern,
        )
        for name, part in reader.slices.items()
    ]


def _effects(
    samples: Sequence[Sample],
    readings: dict[str, StageEffects],
    base: dict[str, Scores],
    held: Mapping[str, Interval],
    ends: Ends,
) -> tuple[Effect, ...]:
    effects = []
    for sample in samples:
        interval, statistic, name = held[sample.behavior], sample.statistic, sample.behavior
        for row, (stage, reading) in enumerate(readings.items()):
            value, linear = reading.effect(name), reading.linear.get(name)
            known = bool(np.isfinite(sample.errors[row]))
            end = ends[stage]
            effects.append(
                Effect(
                    behavior=name,
                    arm=reading.counterfactual.arm.name,
                    value=value,
                    counterfactual=statistic.level(base[name]) - value,
                    low=float(interval.low[row]) if known else None,
                    high=float(interval.high[row]) if known else None,
                    error=float(sample.errors[row]) if known else None,
                    leads=float(interval.leads[row]) if known else None,
                    before=statistic.level(end[0][name]) if end else None,
                    after=statistic.level(end[1][name]) if end else None,
                    linear=None if linear is None else statistic.effect(base[name], linear),
                    exact=reading.counterfactual.exact,
                )
            )
    return tuple(effects)


def is_binary(*scores: NDArray[np.float64]) -> bool:
    """Whether every score is 0 or 1."""
    return all(bool(np.isin(s, (0.0, 1.0)).all()) for s in scores)


def _methods(readings: Mapping[str, StageEffects]) -> tuple[Method, ...]:
    """Those that made the counterfactuals, in the order of the list of estimators."""
    used = {reading.counterfactual.method for reading in readings.values()}
    return tuple(
        Method(name=name, title=kind.title, words=kind.words)
        for name, kind in estimators().items()
        if name in used
    )


def _estimate(choice: Choice, c: Counterfactual, left_out: Sequence[str]) -> Estimate:
    return Estimate(
        arm=c.arm.name,
        method=c.method,
        exact=c.exact,
        reason=choice.reason,
        gradients=c.gradients,
        seconds=round(c.seconds, 3),
        cached=c.cached,
        note="; ".join([*([c.note] if c.note else []), *left_out]),
        displacement=c.displacement,
    )
