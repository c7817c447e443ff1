"""From a record that is to be trusted to levels and effects: estimate, read, spot-check, resample, settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from auditspec.attempt import NotRun, attempt
from auditspec.beginnings import Beginnings, look_at_beginnings
from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.score_table import noise_of
from auditspec.budget import Allotment
from auditspec.checks.subject import Estimated, Rescored
from auditspec.effects import Ends, StageEffects, Unread
from auditspec.elsewhere import (
    ElsewhereReader,
    ModelOf,
    ReadElsewhere,
    by_model,
    models_of,
)
from auditspec.errors import BudgetError, EstimationError
from auditspec.estimator.compute import baseline, chosen_counterfactuals
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.forecast import replay_cost
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import RECORDED, Arm
from auditspec.estimator.linear.adjoint import adjoint
from auditspec.estimator.model_outputs import Borrowed, borrowed, depending
from auditspec.estimator.plan import (
    AUTO,
    Choice,
    choices_of,
    choose,
    expected,
    last_choice,
)
from auditspec.intervals import Sample, intervals, repeatability
from auditspec.measured import (
    Measured,
    effects_of,
    estimates_of,
    measured_behavior,
    methods_of,
)
from auditspec.messages import Message, message
from auditspec.paths import PathEvaluator, Resampler
from auditspec.record.trajectory import Trajectory
from auditspec.results import BehaviorResult, Contribution
from auditspec.runs import MadeRun, Maker, cost_of, read_runs
from auditspec.settle import Settlement
from auditspec.spec.models import Spec
from auditspec.spot_checks import Confirmed, confirm, unsettled

MAX_BINS = 200
"""Most bins that a stage's contributions are summed in."""


@dataclass(frozen=True, kw_only=True)
class Attribution(Measured):
    """What estimating found."""

    estimated: Estimated
    """What checks of the estimate look at."""
    gradients: float
    """Cost of everything together, in minibatch gradients."""
    models: Callable[[], Iterator[ModelOf]]
    """Every model of every run that was made, one after another."""


@dataclass(frozen=True)
class RecordedRun:
    """The recorded run, read: what every other run is held against."""

    behaviors: tuple[BehaviorResult, ...]
    base: dict[str, Scores]
    """gamma(theta_K) per example, by behaviour."""
    paths: PathEvaluator
    beginnings: Beginnings
    borrowed: Sequence[Borrowed]
    """Tensors of the batches that the models of earlier stages give."""
    noise: Mapping[str, float]
    """Standard deviation of a level by what is random in one scoring, by behaviour; missing: none is looked for."""
    unsettled: frozenset[str]
    """Stages without which those would be others."""


@dataclass(frozen=True)
class StageEstimates:
    """Every stage's counterfactual, as far as the budget goes."""

    choices: tuple[Choice, ...]
    counterfactuals: Mapping[str, Counterfactual]
    twins: Mapping[str, Counterfactual]
    notes: tuple[Message, ...]
    """What had to be left out."""


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
    whole, spec = spec, by_model(spec)
    choices = choices_at_first(spec, context)
    engine, progress, store = context.engine, context.progress, context.store
    run = baseline(engine, repeat=repeat, progress=progress, store=store)
    context = replace(context, run=run)
    recorded = read_recorded(spec, reader, context, given)
    maker = Maker(context, allotment.purse())
    rule = settlement(spec, reader, recorded, maker)
    estimates = estimate_stages(spec, choices, maker, rule)
    readings, diverged = read_runs(
        reader, recorded.base, estimates.counterfactuals, estimates.twins, maker
    )
    choices = tuple(choice for choice in estimates.choices if choice.stage in readings)
    confirmed = unsettled(
        confirm(spec, reader, context, recorded.base, choices, readings, maker.purse),
        recorded.unsettled,
    )
    followed = follow_back(spec, reader, context)
    take_up(confirmed, estimates.twins, maker, rule)
    tallies = rule.settle()
    beginnings = recorded.beginnings
    outside = ElsewhereReader(
        whole, reader, recorded.paths, beginnings.parties, beginnings.draws, maker
    ).read_all(confirmed.readings)
    estimated = resample(whole, reader, context, recorded, confirmed, diverged, outside)
    measured = {b.id: b for b in (*recorded.behaviors, *(read.behavior for read in outside))}
    return Attribution(
        behaviors=tuple(measured[b.id] for b in whole.behaviors),
        parties=beginnings.parties,
        paths=(
            *(
                rule.reader.path(walk, b.id)
                for b in recorded.behaviors
                for walk in rule.walked.values()
            ),
            *(path for read in outside for path in read.paths),
        ),
        draws=beginnings.draws,
        tallies=tallies | {read.behavior.id: read.tallies for read in outside},
        methods=methods_of(confirmed.readings),
        estimates=estimates_of(confirmed, (*estimates.notes, *followed.notes)),
        effects=(
            *effects_of(estimated),
            *(effect for read in outside for effect in read.effects(estimated.intervals)),
        ),
        estimated=estimated,
        gradients=maker.purse.spent + followed.gradients,
        contributions=followed.contributions,
        models=partial(models_of, recorded.paths, maker.runs),
    )


def choices_at_first(spec: Spec, context: Context) -> tuple[Choice, ...]:
    """What each stage gets under the budget; none where `auto` cannot pay for every stage.

    What the verdicts ask for may be paid all the same.

    Raises:
        EstimationError: if the method asked for does not fit the budget, or this run.
    """
    try:
        return choose(context.record, spec.estimator.method, context)
    except BudgetError:
        if spec.estimator.method != AUTO:
            raise
        return ()


def read_recorded(
    spec: Spec, reader: Evaluator, context: Context, given: Mapping[str, Tensor] | None
) -> RecordedRun:
    """Read the behaviours along the recorded run, and its beginnings drawn again.

    Raises:
        EstimationError: if a behaviour cannot be read, or repeating the run leads to another model.
    """
    deployed = reader.plug_in(context.record.stages[-1].last)
    base = reader.plug_in(context.run.final)
    refuse_another_model(reader, spec, deployed, base)
    lent = borrowed(context.engine)
    unsettled_stages = depending(context.engine, lent)
    labels = {name: artifact.label for name, artifact in spec.artifacts.items()}
    with context.progress.phase("reading the behaviours along the run"):
        paths = PathEvaluator(reader, context.run, labels, context.references, unsettled_stages)
        beginnings = look_at_beginnings(spec, reader, given)
    noise = {
        name: noise_of(reader.slices[name], [scores], one=True)
        for name, scores in reader.scored_again(context.run.final).items()
    }
    count = range(len(spec.behaviors))
    behaviors = tuple(measured_behavior(spec, index, paths, deployed, base) for index in count)
    return RecordedRun(behaviors, base, paths, beginnings, lent, noise, unsettled_stages)


def settlement(spec: Spec, reader: Evaluator, recorded: RecordedRun, maker: Maker) -> Settlement:
    """The rule over the recorded run alone; `maker` makes the runs that it asks for."""
    sampling = spec.checks.sampling
    return Settlement(
        behaviors=recorded.behaviors,
        parties=recorded.beginnings.parties,
        draws=recorded.beginnings.draws,
        reader=recorded.paths,
        resampler=Resampler(reader, sampling.verdicts, spec.checks.seed, recorded.noise),
        make=partial(maker.make, recorded.paths),
        level=sampling.level,
        walked={RECORDED: recorded.paths.recorded},
    )


def estimate_stages(
    spec: Spec, choices: tuple[Choice, ...], maker: Maker, rule: Settlement
) -> StageEstimates:
    """Every stage's counterfactual and twin.

    Under `auto` and a budget below exact replay's, what the verdicts ask for is made first of all, exactly
    while that can be paid; the rest of the purse pays for the others and their twins.
    """
    context, method = maker.context, spec.estimator.method
    notes: list[Message] = []
    if not choices or any(choice.estimator.budgeted for choice in choices):
        maker.estimator = expected(context.record, method, context.budget)
        maker.share = share_of(choices, context.record)
        if method == AUTO and context.record.grade != "boundaries":
            maker.exactly_first = True
            rule.settle()
            choices, notes = remaining(maker)
            context = replace(context, budget=int(maker.purse.left / maker.estimator.with_twin))
    runs = {c.stage: maker.runs.get(Arm.without(c.stage)) for c in choices}
    ready = {stage: run for stage, run in runs.items() if run is not None}
    missing = {c.stage: c.estimator for c in choices if c.stage not in ready}
    found = chosen_counterfactuals(context, missing)
    if found.refused:
        notes = [*notes, message("no-twin", error=found.refused)]
    maker.purse.spend(cost_of((*found.estimates.values(), *found.twins.values())))
    made = {stage: run.counterfactual for stage, run in ready.items()}
    made |= {c.stage: c for c in found.estimates.values()}
    known = {stage: run.twin for stage, run in ready.items() if run.twin is not None}
    return StageEstimates(
        choices,
        {c.stage: made[c.stage] for c in choices},
        known | {twin.stage: twin for twin in found.twins.values()},
        tuple(notes),
    )


def take_up(
    confirmed: Confirmed, twins: Mapping[str, Counterfactual], maker: Maker, rule: Settlement
) -> None:
    """Let the rule have the runs without one stage; one that is unreliable it asks for, and it is replayed."""
    for choice in confirmed.choices:
        reading, arm = confirmed.readings[choice.stage], Arm.without(choice.stage)
        if not reading.unreliable:
            run = MadeRun(choice.estimator, reading.counterfactual, twins.get(choice.stage))
            maker.runs[arm] = run
            rule.walked[arm] = rule.reader.walk(run.counterfactual, run.twin)


def resample(
    spec: Spec,
    reader: Evaluator,
    context: Context,
    recorded: RecordedRun,
    confirmed: Confirmed,
    diverged: Mapping[str, Unread],
    outside: Sequence[ReadElsewhere],
) -> Estimated:
    """The effects with their intervals over resampled examples: what checks look at."""
    level = spec.checks.sampling.level
    noise = {n: repeatability(recorded.noise.get(n, 0.0), level) for n in recorded.base}
    samples = _samples(reader, recorded.base, confirmed.readings, confirmed.errors, noise)
    with context.progress.phase("resampling the evaluation examples"):
        elsewhere = [read.sample for read in outside if read.sample is not None]
        by_behavior = intervals([*samples, *elsewhere], spec.checks.sampling, spec.checks.seed)
    return Estimated(
        reader=reader,
        run=context.run,
        base=recorded.base,
        confirmed=confirmed,
        diverged=diverged,
        samples=samples,
        intervals=by_behavior,
        ends=_ends(recorded.paths),
        beginnings=recorded.beginnings,
        borrowed=recorded.borrowed,
        elsewhere=elsewhere,
        rescored=[
            *(
                Rescored(b.id, b.concern.tolerance, recorded.noise[b.id])
                for b in recorded.behaviors
                if b.id in recorded.noise
            ),
            *(read.rescored for read in outside),
        ],
    )


@dataclass(frozen=True)
class Followed:
    """When inside the stages the behaviours were made."""

    contributions: tuple[Contribution, ...] = ()
    gradients: float = 0.0
    """What that took, in minibatch gradients."""
    notes: tuple[Message, ...] = ()
    """Why they could not be followed; empty where they were, or nobody asked."""


def follow_back(spec: Spec, reader: Evaluator, context: Context) -> Followed:
    """The contributions, where the spec asks for them."""
    if not spec.estimator.contributions:
        return Followed()
    followed = attempt(lambda: contributions(reader, context))
    if isinstance(followed, NotRun):
        return Followed(notes=(message("no-contributions", error=followed.reason),))
    return followed


def contributions(reader: Evaluator, context: Context) -> Followed:
    """When inside the stages each differentiable behaviour was made.

    Raises:
        UnsupportedError: if the adjoint does not cover this run.
        EstimationError: if no behaviour has a slope.
    """
    every = reader.slopes(context.run.final)
    slopes = {n: s for n, s in every.items() if not isinstance(s, NotRun)}
    if not slopes and (failed := [s for s in every.values() if isinstance(s, NotRun)]):
        raise EstimationError(f"no behaviour has a slope: {failed[0].reason}")
    if not slopes:
        return Followed()
    by_behavior = adjoint(context, slopes)
    rows = []
    for behavior, terms_of in by_behavior.items():
        for stage, terms in terms_of.steps.items():
            first = np.arange(0, len(terms), -(-len(terms) // MAX_BINS) or 1)
            rows.append(
                Contribution(
                    behavior=behavior,
                    stage=stage,
                    step=tuple(map(int, first)),
                    value=tuple(map(float, np.add.reduceat(terms, first))) if len(terms) else (),
                    total=float(terms.sum()),
                )
            )
    return Followed(tuple(rows), sum(terms_of.gradients for terms_of in by_behavior.values()))


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


def remaining(maker: Maker) -> tuple[tuple[Choice, ...], list[Message]]:
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
                message("verdict-rests-on-it") if exact else message("verdict-asks-for-it"),
            )
    rest = [stage for stage in others if stage not in chosen]
    left_out = []
    reason = message("rest-pays-for-estimates")
    try:
        if rest and maker.estimator is not None:
            share = int(maker.purse.left / maker.estimator.with_twin)
            terms = replace(maker.context, budget=share)
            for choice in choices_of(maker.estimator, record, rest, terms, reason):
                chosen[choice.stage] = choice
    except EstimationError:
        left_out.append(message("budget-went-to-verdicts", stages=rest))
    ordered = [chosen[stage.id] for stage in record.stages if stage.id in chosen]
    return tuple(ordered), left_out


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
    noise: Mapping[str, float],
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
            noise=noise[name],
        )
        for name, part in reader.slices.items()
    ]


def is_binary(*scores: NDArray[np.float64]) -> bool:
    """Whether every score is 0 or 1."""
    return all(bool(np.isin(s, (0.0, 1.0)).all()) for s in scores)
