"""Runs beyond the recorded one: what may be used for them, making more of them, reading those of one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import Purse
from auditspec.effects import StageEffects, Unread, read, same, with_steady_errors
from auditspec.errors import EstimationError
from auditspec.estimator.compute import ahead, counterfactuals, with_twins
from auditspec.estimator.counterfactual import Counterfactual, Known
from auditspec.estimator.interface import Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.replay.replay import Replay
from auditspec.estimator.requirements import steps_missing
from auditspec.paths import PathEvaluator, Walked


class MadeRun(NamedTuple):
    """A run that was made, and its twin where it is estimated."""

    estimator: Estimator
    counterfactual: Counterfactual
    twin: Counterfactual | None


@dataclass
class Maker:
    """Makes further runs, as far as the purse goes.

    Args:
        context: what they are made of.
        purse: what is left to spend.
        estimator: by which runs are estimated where they cannot or need not be replayed; None: by none.
        share: of exact replay's gradients at which runs are estimated.
        exactly_first: replay where the purse pays, and estimate otherwise.
    """

    context: Context
    purse: Purse
    estimator: Estimator | None = None
    share: float = 0.0
    exactly_first: bool = False
    runs: dict[Arm, MadeRun] = field(default_factory=dict, init=False)
    """The runs that were made, or are told to have been."""

    def make(self, paths: PathEvaluator, arms: Sequence[Arm], exactly: bool) -> dict[Arm, Walked]:
        """Those that can be paid, and do not diverge.

        Args:
            paths: reads them.
            arms: the runs.
            exactly: whether they must be exact.
        """
        if steps_missing(self.context.record.stages[1:]):
            return {}
        if exactly or self.estimator is None or self.exactly_first:
            self._ahead(arms)
        walked: dict[Arm, Walked] = {}
        for arm in arms:
            run = self._make(arm, exactly)
            try:
                if run is not None:
                    walked[arm] = paths.walk(run.counterfactual, run.twin)
                    self.runs[arm] = run
            except EstimationError:  # it diverges: nothing can be read off it
                continue
        return walked

    def replay(self, arm: Arm) -> Counterfactual | None:
        """A run exactly; None where that cannot be paid."""
        if not self.purse.pays(self._steps(arm)):
            return None
        return self._compute(Replay(), arm, replace(self.context, known=self._known()))

    def _ahead(self, arms: Sequence[Arm]) -> None:
        """Let several ranks replay what can be paid."""
        left, payable = self.purse.left, []
        for arm in arms if self.context.team is not None else ():
            if (steps := self._steps(arm)) <= left:
                payable.append(arm)
                left -= steps
        ahead(Replay(), replace(self.context, known=self._known()), payable)

    def _make(self, arm: Arm, exactly: bool) -> MadeRun | None:
        estimator = None if exactly else self.estimator
        if estimator is not None and arm.replaced and not estimator.replaces:
            estimator = None
        if estimator is not None and not self.exactly_first:
            estimated = self._estimate(estimator, arm)
            if estimated is not None:
                return estimated
        exact = self.replay(arm)
        if exact is not None:
            return MadeRun(Replay(), exact, None)
        if estimator is not None and self.exactly_first:
            return self._estimate(estimator, arm)
        return None

    def _estimate(self, estimator: Estimator, arm: Arm) -> MadeRun | None:
        """With a twin; None where that cannot be paid, or knows nothing of its error."""
        whole = self._steps(arm)
        asked = max(int(whole * self.share), 1)
        if self.exactly_first:
            asked = int(min(whole, self.purse.left / estimator.with_twin))
        if not self.purse.pays(estimator.with_twin * asked):
            return None
        recorded = self.context.recorded.alone()
        context = replace(self.context, budget=asked, recorded=recorded)
        try:
            found = with_twins(estimator, context, [arm])
        except EstimationError:  # too few for an estimate of a run this short
            return None
        self.purse.spend(cost_of((*found.estimates.values(), *found.twins.values())))
        estimate, twin = found.estimates[arm], found.twins.get(arm)
        if estimate.unreliable or found.refused or (twin is not None and same(estimate, twin)):
            return None
        return MadeRun(estimator, estimate, twin)

    def _compute(self, estimator: Estimator, arm: Arm, context: Context) -> Counterfactual:
        counterfactual = counterfactuals(estimator, context, [arm])[arm]
        self.purse.spend(cost_of([counterfactual]))
        return counterfactual

    def _known(self) -> Known:
        runs = (run.counterfactual for run in self.runs.values())
        return {run.arm: run for run in runs if run.exact}

    def _steps(self, arm: Arm) -> float:
        """Gradients of every stage that a run makes again."""
        terms = replace(self.context, known=self._known())
        return Replay().forecast(self.context.record, [arm], terms).gradients


def read_runs(
    reader: Evaluator,
    base: dict[str, Scores],
    estimates: Mapping[str, Counterfactual],
    twins: Mapping[str, Counterfactual],
    maker: Maker,
) -> tuple[dict[str, StageEffects], dict[str, Unread]]:
    """Every stage's counterfactual, read; and of those that diverge or were given up, why they cannot be.

    Such an estimate is replaced by an exact replay, if one can be paid.

    Args:
        reader: reads the spec's behaviours.
        base: gamma(theta_K) per example, by behaviour.
        estimates: by stage.
        twins: the same by other choices, of those that have one.
        maker: makes replays.

    Raises:
        EstimationError: if none can be read.
    """
    final = maker.context.run.final
    readings: dict[str, StageEffects] = {}
    diverged: dict[str, Unread] = {}
    for stage, estimate in estimates.items():
        twin, tried = twins.get(stage), estimate
        while stage not in readings:
            try:
                readings[stage] = read(reader, final, base, tried, twin)
            except EstimationError as error:
                exact = None if tried.exact else maker.replay(tried.arm)
                if exact is None:
                    diverged[stage] = Unread(error.message, tried.exact)
                    break
                tried, twin = exact, None
    if not readings:
        raise EstimationError(
            f"no run without a stage can be read: {next(iter(diverged.values())).why}",
            "check the metric, and whether the training code and the data belong together",
        )
    return with_steady_errors(readings), diverged


def cost_of(runs: Sequence[Counterfactual]) -> float:
    """Gradients that runs took here, those from the cache left out."""
    return sum(run.gradients for run in runs if not run.cached)
