"""Replay what matters most, hold the estimates against it, and say how wrong the others may be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import Purse
from auditspec.effects import StageEffects, read
from auditspec.estimator.compute import counterfactuals
from auditspec.estimator.forecast import replay_cost
from auditspec.estimator.interface import Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.plan import Choice
from auditspec.estimator.replay.replay import Replay
from auditspec.messages import message
from auditspec.record.trajectory import Trajectory
from auditspec.spec.models import Spec


@dataclass(frozen=True)
class Comparison:
    """An estimated effect beside the exact one, in the metric's unit."""

    stage: str
    behavior: str
    estimate: float
    exact: float
    half_width: float
    """Of the estimate's stated interval: sampling, and the estimator's own error where it states one."""
    tolerance: float
    relative_error: float
    """The error, relative to the size of the exact effect (`Statistic.distance`)."""
    error: float = 0.0
    """How far the estimate is from the exact effect (`Statistic.distance`)."""
    own: float | None = None
    """The estimator's own estimate of that; None where it has none."""

    @property
    def passed(self) -> bool:
        """Estimate and exact agree within the interval or the tolerance, and in sign if it matters."""
        close = abs(self.estimate - self.exact) <= max(self.half_width, self.tolerance)
        small = max(abs(self.estimate), abs(self.exact)) <= self.tolerance
        return bool(close and (small or np.sign(self.estimate) == np.sign(self.exact)))


@dataclass(frozen=True)
class Confirmed:
    """The estimates after the spot check."""

    choices: tuple[Choice, ...]
    readings: dict[str, StageEffects]
    """Exact where a stage was replayed."""
    errors: dict[str, NDArray[np.float64]]
    """The estimator's own error of each stage's effect, [S] by behaviour; infinite: unknown."""
    replayed: tuple[str, ...]
    """Stages that were estimated and then replayed."""
    failed: str
    """Why none could be replayed; empty where that was not tried, or went well."""
    comparisons: tuple[Comparison, ...]
    """Of the replayed stages' estimates with their replays, behaviour by behaviour."""
    already_exact: tuple[str, ...]
    """Stages of which no estimate was compared: an exact replay by themselves, or unreliable."""
    gradients: float
    """What the replays took, in minibatch gradients."""


def confirm(
    spec: Spec,
    reader: Evaluator,
    context: Context,
    base: dict[str, Scores],
    choices: tuple[Choice, ...],
    readings: dict[str, StageEffects],
    purse: Purse | None = None,
) -> Confirmed:
    """Replay the leading estimated stages, as far as the purse goes, compare, and take their exact effects from then on.

    A stage whose estimate is unreliable goes before them: it has no other effect to be taken.

    The others' own error is the estimator's own estimate of it (paired replay's twin), times the factor
    by which the replayed stages exceeded theirs. Where it has none, it is the larger of two: the
    relative error seen in the replayed stages, and the distance to the rung below, that is all that
    linearising the later stages contributed; where nothing was replayed either, it is unknown.
    """
    wanted = _to_replay(spec, readings, reader.rerun.trajectory, purse)
    replayed, failed = attempt(lambda: _replayed(reader, context, base, wanted)), ""
    if isinstance(replayed, NotRun):
        wanted, failed, replayed = [], replayed.reason, {}
    exact = {stage: replayed.get(stage, reading) for stage, reading in readings.items()}
    comparisons = [
        compare(readings[stage], reading, b.id, b.concern.tolerance)
        for stage, reading in replayed.items()
        if not readings[stage].unreliable  # what it says of itself says nothing of the others
        for b in spec.behaviors
    ]
    already = [s for s, r in exact.items() if r.counterfactual.exact and s not in wanted]
    already += [s for s in wanted if readings[s].unreliable]
    replays = [reading.counterfactual for reading in replayed.values()]
    return Confirmed(
        choices=tuple(_replay_of(c) if c.stage in wanted else c for c in choices),
        readings=exact,
        errors={
            b.id: np.array([own_error(r, b.id, comparisons) for r in exact.values()])
            for b in spec.behaviors
        },
        replayed=tuple(wanted),
        failed=failed,
        comparisons=tuple(comparisons),
        already_exact=tuple(already),
        gradients=sum((c.gradients for c in replays if not c.cached), 0.0),
    )


def _to_replay(
    spec: Spec, readings: Mapping[str, StageEffects], record: Trajectory, purse: Purse | None
) -> list[str]:
    """The stages to replay, those first that matter most, as far as the purse goes; it is spent."""
    if record.grade == "boundaries":
        return []
    order = sorted(leading(spec, readings), key=lambda stage: not readings[stage].unreliable)
    costs, affordable = replay_cost(record.stages), []
    for stage in order[: spec.checks.spot_check.stages]:
        if purse is None or purse.pays(costs[stage]):
            affordable.append(stage)
            if purse is not None:
                purse.spend(costs[stage])
    return affordable


def _replay_of(choice: Choice) -> Choice:
    return replace(choice, estimator=Replay(), reason=message("replayed-by-spot-check"))


def _replayed(
    reader: Evaluator, context: Context, base: dict[str, Scores], stages: Sequence[str]
) -> dict[str, StageEffects]:
    """The runs without some stages, replayed and read."""
    replays = counterfactuals(Replay(), context, Arm.each(stages))
    return {a.stage: read(reader, context.run.final, base, c) for a, c in replays.items()}


def unsettled(confirmed: Confirmed, stages: Collection[str]) -> Confirmed:
    """The same, but that the effects of some stages are neither exact nor of a known error.

    Args:
        confirmed: what was estimated and replayed.
        stages: those whose runs rest on data that only the recorded run can have had.
    """
    readings, errors = dict(confirmed.readings), {n: e.copy() for n, e in confirmed.errors.items()}
    for row, (stage, reading) in enumerate(confirmed.readings.items()):
        if stage in stages:
            notes = (*reading.counterfactual.notes, message("later-batches-hold-outputs"))
            unsure = replace(reading.counterfactual, exact=False, notes=notes)
            readings[stage] = replace(reading, counterfactual=unsure)
            for known in errors.values():
                known[row] = np.inf
    return replace(confirmed, readings=readings, errors=errors)


def leading(
    spec: Spec, readings: Mapping[str, StageEffects], *, estimated: bool = True
) -> list[str]:
    """Stages by how far they move any behaviour towards its concern, in tolerances.

    Args:
        spec: names the concerns.
        readings: of every stage.
        estimated: leave out the stages whose counterfactual is exact.
    """
    reach: dict[str, float] = {}
    for behavior in spec.behaviors:
        for stage, reading in readings.items():
            if not (estimated and reading.counterfactual.exact):
                moved = behavior.concern.signed(reading.effect(behavior.id))
                scaled = moved / max(behavior.concern.tolerance, 1e-12)
                reach[stage] = max(reach.get(stage, -np.inf), scaled)
    return sorted(reach, key=lambda stage: reach[stage], reverse=True)


def compare(
    estimated: StageEffects, exact: StageEffects, behavior: str, tolerance: float
) -> Comparison:
    """A stage's estimated effect on a behaviour beside its exact one.

    The estimate's stated interval is two standard errors over examples, and the estimator's own
    estimate of its error, where it has one.
    """
    statistic, deployed = exact.statistics[behavior], exact.deployed[behavior]
    ours, theirs = estimated.effects[behavior], exact.effects[behavior]
    spread = statistic.standard_error(deployed, ours)
    size, off = exact.size(behavior), statistic.effect_distance(deployed, ours, theirs)
    own = estimated.own[behavior] if estimated.own is not None else None
    return Comparison(
        stage=exact.stage,
        behavior=behavior,
        estimate=estimated.effect(behavior),
        exact=exact.effect(behavior),
        half_width=2 * spread + (own or 0.0),
        tolerance=tolerance,
        relative_error=off / size if size else (0.0 if off == 0 else np.inf),
        error=off,
        own=own,
    )


def own_error(reading: StageEffects, behavior: str, comparisons: Sequence[Comparison]) -> float:
    """The estimator's own error of a stage's effect, in its unit; infinite if unknown.

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
    return max(relative * reading.size(behavior), reading.rung[behavior])


def worst_relative_error(comparisons: Sequence[Comparison]) -> Mapping[str, float]:
    """The largest relative error of the checked stages, by behaviour."""
    worst: dict[str, float] = {}
    for c in comparisons:
        worst[c.behavior] = max(worst.get(c.behavior, 0.0), c.relative_error)
    return worst


def widened(own: float, behavior: str, comparisons: Sequence[Comparison]) -> float:
    """An estimator's own error on a stage that was not replayed, in the light of those that were.

    It grows by the factor by which the spot check saw the error on this behaviour exceed what the
    estimator said; by the whole error seen where it had said 0.
    """
    grown = [
        own * c.error / c.own if c.own else own + c.error
        for c in comparisons
        if c.behavior == behavior and c.own is not None
    ]
    return max([own, *grown])
