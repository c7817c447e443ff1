"""Runs beyond the recorded one: what may be used for them, making more of them, reading those of one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from auditspec.behaviors.evaluate import Evaluator, Scores
from auditspec.budget import TWIN, Purse
from auditspec.counterfactuals import Baseline, Store, compute_arms
from auditspec.effects import StageEffects, read, same, with_steady_errors
from auditspec.engine.references import References
from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.paired.stored_gradients import StoredGradients
from auditspec.estimator.paired.twin import unreliable
from auditspec.estimator.prefixes import Prefixes
from auditspec.paths import PathEvaluator, Walked
from auditspec.progress import Progress


@dataclass(frozen=True)
class Evidence:
    """What an attribution may use besides the record."""

    references: References = field(default_factory=References)
    """Clean data and weights to replace a party's by."""
    given: Mapping[str, Tensor] | None = None
    """The pinned first weights."""
    declared: Mapping[str, Declared] = field(default_factory=dict)
    """What the spec says of the stages' learning rates, for krylov."""
    kept: StoredGradients | None = None
    """Recorded gradients that the check of the record computed."""


Made = tuple[Counterfactual, Counterfactual | None]
"""A run, and its twin where it is estimated."""


@dataclass
class Maker:
    """Makes further runs, as far as the purse goes.

    Args:
        rerun: the record, in the precision of the estimate.
        run: the recorded run as the estimates have it.
        using: what may be used besides.
        purse: what is left to spend.
        progress: told of the long phases.
        store: finished estimates; None: everything is computed anew.
        share: of exact replay's gradients at which runs are estimated; None: they are replayed.
        exactly_first: replay where the purse pays, and estimate otherwise.
    """

    rerun: Rerun
    run: Baseline
    using: Evidence
    purse: Purse
    progress: Progress
    store: Store | None
    share: float | None = None
    exactly_first: bool = False
    made: dict[Arm, Made] = field(default_factory=dict, init=False)
    """The runs that were made, or are told to have been."""

    def make(self, paths: PathEvaluator, arms: Sequence[Arm], exactly: bool) -> dict[Arm, Walked]:
        """Those that can be paid, and do not diverge.

        Args:
            paths: reads them.
            arms: the runs.
            exactly: whether they must be exact.
        """
        stages = self.rerun.trajectory.stages
        if any(not s.steps and s.header.steps for s in stages[1:]):
            return {}
        walked: dict[Arm, Walked] = {}
        for arm in arms:
            made = self._made(arm, exactly)
            try:
                if made is not None:
                    walked[arm] = paths.walk(*made)
                    self.made[arm] = made
            except EstimationError:  # it diverges: nothing can be read off it
                continue
        return walked

    def replay(self, arm: Arm) -> Counterfactual | None:
        """A run exactly; None where that cannot be paid."""
        if not self.purse.pays(self._steps(arm)):
            return None
        return self._compute(arm, exact=True, gradients=None)

    def _made(self, arm: Arm, exactly: bool) -> Made | None:
        estimable = self.share is not None and not exactly and not arm.replaced
        if estimable and not self.exactly_first and (made := self._estimate(arm)) is not None:
            return made
        exact = self.replay(arm)
        if exact is not None:
            return exact, None
        return self._estimate(arm) if estimable and self.exactly_first else None

    def _estimate(self, arm: Arm) -> Made | None:
        """By paired replay, with a twin; None where that cannot be paid, or knows nothing of its error."""
        whole = self._steps(arm)
        asked = max(int(whole * (self.share or 0.0)), 1)
        if self.exactly_first:
            asked = int(min(whole, self.purse.left / TWIN))
        if not self.purse.pays(TWIN * asked):
            return None
        try:
            found = self._compute(arm, exact=False, gradients=asked)
        except EstimationError:  # too few for paired replay of a run this short
            return None
        if unreliable(found):
            return None
        twin = None
        if not found.exact:
            twin = self._compute(arm, exact=False, gradients=asked, shift=0.5)
            if same(found, twin):
                return None
        return found, twin

    def _compute(
        self, arm: Arm, *, exact: bool, gradients: int | None, shift: float = 0.0
    ) -> Counterfactual:
        found = compute_arms(
            self.rerun,
            self.run,
            [arm],
            self.progress,
            exact=exact,
            gradients=gradients,
            shift=shift,
            store=self.store,
            kept=self.using.kept,
            references=self.using.references,
            known=self._known() if exact else (),
        )[arm]
        self.purse.spend(cost_of([found]))
        return found

    def _known(self) -> list[Counterfactual]:
        return [made for made, _ in self.made.values() if made.exact]

    def _steps(self, arm: Arm) -> float:
        """Gradients of every stage that a run makes again."""
        known = {made.arm: made for made in self._known()}
        prefixes = Prefixes(self.rerun.trajectory, [arm], known)
        return float(sum(prefixes.gradients().values()))


def read_runs(
    reader: Evaluator,
    base: dict[str, Scores],
    found: Mapping[str, Counterfactual],
    twins: Mapping[str, Counterfactual],
    maker: Maker,
) -> tuple[dict[str, StageEffects], dict[str, str]]:
    """Every stage's counterfactual, read; and of those that diverge, why they cannot be.

    An estimate that diverges is replaced by an exact replay, if one can be paid.

    Args:
        reader: reads the spec's behaviours.
        base: gamma(theta_K) per example, by behaviour.
        found: by stage.
        twins: the same with other steps sampled, of those that have one.
        maker: makes replays.

    Raises:
        EstimationError: if none can be read.
    """
    final = maker.run.final
    readings: dict[str, StageEffects] = {}
    diverged: dict[str, str] = {}
    for stage, estimate in found.items():
        twin, tried = twins.get(stage), estimate
        while stage not in readings:
            try:
                readings[stage] = read(reader, final, base, tried, twin)
            except EstimationError as error:
                exact = None if tried.exact else maker.replay(tried.arm)
                if exact is None:
                    diverged[stage] = error.message
                    break
                tried, twin = exact, None
    if not readings:
        raise EstimationError(
            f"no run without a stage can be read: {next(iter(diverged.values()))}",
            "check the metric, and whether the training code and the data belong together",
        )
    return with_steady_errors(readings), diverged


def cost_of(found: Sequence[Counterfactual]) -> float:
    """Gradients that runs took here, those from the cache left out."""
    return sum(c.gradients for c in found if not c.cached)
