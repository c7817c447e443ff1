"""Which steps of the later stages paired replay samples, and what that costs.

In arm i, step k of a later stage j that it trains is sampled with the density

    d_ijk = min(1, scale * w_ijk)
    w_ijk = ((lr_k / largest lr of stage j)^1/2 + 4 e^-(k - a)/10)
            * 1.5^-(stages after j) * ||theta_b - theta_a||_i^-1/4

where ||theta_b - theta_a||_i is the displacement of the stage that the arm leaves out, of several
the root of the sum of their squares. The scale is the largest that the budget allows. Steps with a
high learning rate move the weights most; a stage's first steps, with fresh moments, decide where the
rest of it goes; what goes wrong in an early stage is partly repaired by the later ones; and a stage
that moved the weights far has a large effect, of which a given error is a smaller part. All of it is
known before anything is computed. Sampled are the first two steps of every later stage and each step
at which the running sum of d passes a whole number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditspec.errors import BudgetError
from auditspec.estimator.counterfactual import Known, norm
from auditspec.estimator.interventions import Arm
from auditspec.estimator.prefixes import Prefixes
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.requirements import require_steps
from auditspec.record.trajectory import StageTrajectory, Trajectory

FIRST = 2
"""Steps at the start of every later stage that are always sampled."""
RATE_POWER = 0.5
START_WEIGHT, START_STEPS = 4.0, 10.0
"""Height and length of the extra weight of a stage's first steps."""
STAGE_FACTOR = 1.5
DISPLACEMENT_POWER = 0.25
SMALLEST_DISPLACEMENT = 1e-3
"""A displacement counts as at least this part of the largest."""


@dataclass(frozen=True)
class Schedule:
    """The sampled steps, and the stages whose recorded gradients are needed."""

    sampled: dict[tuple[Arm, int], tuple[int, ...]]
    """(arm, index of a later stage that it trains) -> the stage's sampled steps, ascending."""
    observed: dict[int, int]
    """Index of a later stage -> gradients that re-running it for the recorded ones costs, once for
    all arms; only stages in which some arm skips a step and whose recorded gradients cost something
    (`RecordedRun.cost`)."""
    skipping: frozenset[tuple[Arm, int]]
    """The pairs of which some step is not sampled."""
    gradients: int
    """Forecast of the whole cost, exact."""

    def exact(self, arm: Arm) -> bool:
        """Whether every step that an arm makes is sampled: then it is replay."""
        return all(other != arm for other, _ in self.skipping)


def schedule(
    trajectory: Trajectory,
    arms: Sequence[Arm],
    gradients: int,
    shift: float = 0.0,
    recorded: RecordedRun | None = None,
    known: Known | None = None,
) -> Schedule:
    """The sampled steps of all arms under one budget.

    Args:
        trajectory: the record.
        arms: stages to leave out in each.
        gradients: budget in minibatch gradients for all of them, recorded gradients included.
        shift: moves the sampled steps by this part of a window (the twin: 0.5).
        recorded: says what the recorded run's gradients cost; None: nobody stored them.
        known: arms that were made before; what others share with them costs nothing again.

    Raises:
        RecordError: if the record has no such stage.
        BudgetError: if the budget is too small.
        EstimationError: if a later stage was recorded without steps.
    """
    places = _Places(Prefixes(trajectory, arms, known or {}), shift, recorded)
    whole = places.at(math.inf)
    if gradients >= whole.gradients:
        return whole
    least = places.at(0.0)
    if gradients < least.gradients:
        smallest = min(least.gradients, whole.gradients)
        raise BudgetError(
            f"paired-replay of {len(set(arms))} stages cannot be done with {gradients:,} gradients",
            f"raise estimator.budget.gradients to {smallest:,} or more",
        )
    low, high, best = -40.0, 40.0, least  # exponents of the scale
    for _ in range(50):
        middle = (low + high) / 2
        tried = places.at(math.exp(middle))
        if tried.gradients <= gradients:
            low = middle
            best = max(best, tried, key=lambda s: sum(map(len, s.sampled.values())))
        else:
            high = middle
    return best


def smallest_budget(
    trajectory: Trajectory,
    arms: Sequence[Arm],
    recorded: RecordedRun | None = None,
    known: Known | None = None,
) -> int:
    """The smallest budget with which paired replay works, in minibatch gradients.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps.
    """
    places = _Places(Prefixes(trajectory, arms, known or {}), 0.0, recorded)
    return min(places.at(0.0).gradients, places.at(math.inf).gradients)


class _Places:
    """Weights of all steps; `at` places the samples for a scale."""

    def __init__(self, prefixes: Prefixes, shift: float, recorded: RecordedRun | None) -> None:
        self.shift = shift
        recorded = recorded or RecordedRun()
        every = prefixes.trajectory.stages
        trained = {arm: prefixes.trained(arm) for arm in prefixes.arms}
        later = sorted({j for indices in trained.values() for j in indices})
        require_steps([every[j] for j in later])
        self.cost = {j: [len(step.batches) for step in every[j].steps] for j in later}
        self.recorded = {j: recorded.cost(every[j]) for j in later}
        rates = {j: _step_weights(every[j]) * STAGE_FACTOR ** (j + 1 - len(every)) for j in later}
        alone = {s.id: _displacement(s) for s in every if any(s.id in a.omitted for a in trained)}
        moved = {
            arm: math.hypot(*(alone[stage] for stage in sorted(arm.omitted))) for arm in trained
        }
        floor = SMALLEST_DISPLACEMENT * max(moved.values(), default=0.0)
        self.weights = {
            (arm, j): rates[j] * (max(moved[arm], floor) or 1.0) ** -DISPLACEMENT_POWER
            for arm, indices in trained.items()
            for j in indices
        }

    def at(self, scale: float) -> Schedule:
        sampled: dict[tuple[Arm, int], tuple[int, ...]] = {}
        skipping: set[tuple[Arm, int]] = set()
        for key, weights in self.weights.items():
            density = (
                torch.ones_like(weights) if scale == math.inf else (scale * weights).clamp(max=1)
            )
            density[:FIRST] = 1
            passed = torch.floor(density.cumsum(0) + self.shift + 1e-9)
            take = torch.diff(passed, prepend=passed.new_zeros(1)) > 0
            take[:FIRST] = True
            sampled[key] = tuple(take.nonzero().flatten().tolist())
            if not bool(take.all()):
                skipping.add(key)
        crossed = {j for _, j in skipping}
        observed = {j: cost for j, cost in self.recorded.items() if cost and j in crossed}
        total = sum(observed.values()) + sum(
            self.cost[j][k] for (_, j), steps in sampled.items() for k in steps
        )
        return Schedule(sampled, observed, frozenset(skipping), total)


def _step_weights(stage: StageTrajectory) -> Tensor:
    """(lr_k / largest)^1/2 + 4 e^-(k - a)/10 of every step, lr the largest of its groups."""
    rates = torch.tensor(
        [max((float(h.get("lr", 1.0)) for h in step.groups), default=1.0) for step in stage.steps],
        dtype=torch.float64,
    )
    largest = float(rates.max()) if len(rates) else 0.0
    relative = (rates / largest).clamp(min=0) if largest > 0 else torch.ones_like(rates)
    start = torch.exp(-torch.arange(len(rates), dtype=torch.float64) / START_STEPS)
    return relative**RATE_POWER + START_WEIGHT * start


def _displacement(stage: StageTrajectory) -> float:
    """||theta_b - theta_a|| of a stage."""
    first, last = stage.first.parameters, stage.last.parameters
    return norm({n: last[n].double() - p.double() for n, p in first.items()})
