"""How often intervals of effects hold the true one: simulated people, in groups of 20, 100, and 1,000.

pytest -s tests/behaviors/test_coverage.py      # prints the shares
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from measures import statistic_of

from auditspec.behaviors.statistics import Columns, Floats, SliceStatistic
from auditspec.intervals import Sample, intervals
from auditspec.results import Concern
from auditspec.spec.checks import Sampling

LEVEL, SIMULATED, RESAMPLES = 0.95, 300, 300
LEAST = 0.9 * LEVEL
EVERYONE = 400_000
"""People of a group by whom the true effect is known, to a thousandth."""
CONCERN = Concern(direction="increase", tolerance=0.0)


class People(NamedTuple):
    """Two groups of the same size: scores of the deployed model, those without a stage, and columns."""

    deployed: Floats
    without: Floats
    columns: Columns


def shares(rng: np.random.Generator, size: int) -> People:
    """Chosen or not: group 1 less often, and still less by the deployed model; half of each are qualified."""
    group, won = np.repeat([0, 1], size), np.tile([0, 1], size)
    without = rng.random(2 * size) < 0.35 + 0.3 * won - 0.1 * group
    kept = rng.random(2 * size) > np.where(group == 1, 0.5, 0.1)
    return People((without & kept) * 1.0, without * 1.0, {"sex": group, "won": won})


def alike(rng: np.random.Generator, size: int) -> People:
    """Chosen or not, whatever the group, by both models: gaps are all chance, and where they have a kink."""
    group, won = np.repeat([0, 1], size), np.tile([0, 1], size)
    without = rng.random(2 * size) < 0.35 + 0.3 * won
    kept = rng.random(2 * size) > 0.2
    return People((without & kept) * 1.0, without * 1.0, {"sex": group, "won": won})


def errors(rng: np.random.Generator, size: int) -> People:
    """Of predicted values: the deployed model's are larger, and too low for group 1."""
    group = np.repeat([0, 1], size)
    without = rng.normal(0, 1 + 0.3 * group)
    return People(
        without * 1.3 + rng.normal(0, 0.5, 2 * size) - 0.6 * group, without, {"sex": group}
    )


def probabilities(rng: np.random.Generator, size: int) -> People:
    """The deployed model's are too sure of themselves."""
    logit = rng.normal(size=2 * size)
    won = (rng.random(2 * size) < 1 / (1 + np.exp(-logit))).astype(int)
    noise = rng.normal(0, 0.3, 2 * size)
    return People(
        1 / (1 + np.exp(-3 * logit + noise)), 1 / (1 + np.exp(-logit + noise / 2)), {"won": won}
    )


BY = {"by": "sex"}
CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (shares, "mean", {}),
    (shares, "difference", BY),
    (shares, "difference", BY | {"group": 1, "reference": 0}),
    (shares, "ratio", BY),
    (shares, "equalized-odds", BY | {"truth": "won"}),
    (shares, "worst-group", BY | {"worst": "lowest"}),
    (alike, "difference", BY),
    (alike, "ratio", BY),
    (alike, "equalized-odds", BY | {"truth": "won"}),
    (errors, "mae", {}),
    (errors, "rmse", {}),
    (errors, "bias", {}),
    (errors, "difference", BY | {"average": "rmse"}),
    (errors, "worst-group", BY | {"worst": "highest", "average": "mae"}),
    (errors, "quantile", {"q": 0.8}),
    (probabilities, "ece", {"truth": "won"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("size", [20, 100, 1000])
@pytest.mark.parametrize(("draw", "name", "options"), CASES)
def test_intervals_hold_the_true_effect(
    draw: Any, name: str, options: dict[str, Any], size: int
) -> None:
    rng, statistic = np.random.default_rng(size), statistic_of(name, **options)
    every = draw(rng, EVERYONE)
    columns = {column: every.columns[column] for column in statistic.columns}
    truth = SliceStatistic(statistic, columns).effect(
        every.deployed, every.deployed - every.without
    )
    held = 0
    for seed in range(SIMULATED):
        some = draw(rng, size)
        columns = {column: some.columns[column] for column in statistic.columns}
        sample = Sample(
            behavior="b",
            dataset="d",
            ids=np.arange(2 * size),
            deployed=some.deployed,
            changes=(some.deployed - some.without)[:, None],
            errors=np.zeros(1),
            statistic=SliceStatistic(statistic, columns),
            binary=draw in (shares, alike),
            concern=CONCERN,
        )
        options_ = Sampling(resamples=RESAMPLES, level=LEVEL)
        interval = intervals([sample], options_, seed)["b"]
        held += bool(interval.low[0] <= truth <= interval.high[0])
    share = held / SIMULATED
    print(f"\n{draw.__name__:14} {statistic.words:77} {size:5} a group: {share:.3f}", end="")
    assert share >= LEAST
