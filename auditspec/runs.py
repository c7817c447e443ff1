"""Runs beyond the recorded one: what may be used for them, making more of them, reading those of one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from auditspec.behaviors.reading import Reader, Scores
from auditspec.budget import Purse
from auditspec.counterfactuals import Baseline, Store, compute_arms
from auditspec.errors import EstimationError
from auditspec.estimator.forecast import gradients_of
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.kept import KeptGradients
from auditspec.estimator.plan import Choice
from auditspec.estimator.segments import Declared
from auditspec.estimator.twin import unreliable
from auditspec.paths import PathReader, Walked
from auditspec.progress import Progress
from auditspec.readings import Reading, read, with_steady_errors
from auditspec.record.references import References
from auditspec.record.rerun import Rerun


@dataclass(frozen=True)
class Evidence:
    """What an attribution may use besides the record."""

    references: References = field(default_factory=References)
    """Clean data and weights to replace a party's by."""
    given: Mapping[str, Tensor] | None = None
    """The pinned first weights."""
    declared: Mapping[str, Declared] = field(default_factory=dict)
    """What the spec says of the stages' learning rates, for krylov."""
    kept: KeptGradients | None = None
    """Recorded gradients that the check of the record computed."""


@dataclass
class Maker:
    """Makes further runs, as far as the purse goes."""

    rerun: Rerun
    run: Baseline
    choices: Sequence[Choice]
    using: Evidence
    purse: Purse
    progress: Progress
    store: Store | None
    budget: int | None
    known: Sequence[Counterfactual] = ()
    """Runs that were made exactly before."""

    def make(self, paths: PathReader, arms: Sequence[Arm], exactly: bool) -> dict[Arm, Walked]:
        """Those that can be paid, and do not diverge; estimated where the stages were estimated by paired
        replay.

        Args:
            paths: reads them.
            arms: the runs.
            exactly: whether they must be exact.
        """
        stages = self.rerun.trajectory.stages
        if any(not s.steps and s.header.steps for s in stages[1:]):
            return {}
        estimated = not exactly and any(c.method == "paired-replay" for c in self.choices)
        walked: dict[Arm, Walked] = {}
        for arm in arms:
            pair = self._estimate(arm) if estimated and not arm.replaced else None
            if pair is None and (exact := self.replay(arm)) is not None:
                pair = exact, None
            try:
                if pair is not None:
                    walked[arm] = paths.walk(*pair)
            except EstimationError:  # it diverges: nothing can be read off it
                continue
        return walked

    def replay(self, arm: Arm) -> Counterfactual | None:
        """A run exactly; None where that cannot be paid."""
        if not self.purse.pays(self._steps(arm)):
            return None
        return self._compute(arm, exact=True, gradients=None)

    def _estimate(self, arm: Arm) -> tuple[Counterfactual, Counterfactual | None] | None:
        """At the share of exact replay's gradients that the stages were estimated at, with a twin; None where that
        says nothing.
        """
        whole = self._steps(arm)
        every = sum(self._steps(Arm.without(stage.id)) for stage in self.rerun.trajectory.stages)
        share = min(1.0, (self.budget or every) / every) if every else 1.0
        asked = max(int(whole * share), 1)
        if not self.purse.pays(2 * asked):
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
            known=self.known if exact else (),
        )[arm]
        self.purse.spend(cost_of([found]))
        return found

    def _steps(self, arm: Arm) -> float:
        """Gradients of every stage that a run makes again."""
        stages = self.rerun.trajectory.stages
        first = arm.first([stage.id for stage in stages])
        return float(sum(gradients_of(s) for s in stages[first:] if s.id not in arm.omitted))


def read_runs(
    reader: Reader,
    base: dict[str, Scores],
    found: Mapping[str, Counterfactual],
    twins: Mapping[str, Counterfactual],
    maker: Maker,
) -> tuple[dict[str, Reading], dict[str, str]]:
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
    readings: dict[str, Reading] = {}
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
