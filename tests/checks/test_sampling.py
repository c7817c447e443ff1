"""Intervals against simulation, closed forms, and scipy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from said import said

from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.mean import Mean
from auditspec.checks.sampling import SamplingCheck
from auditspec.intervals import Interval, Sample, intervals
from auditspec.results import Concern
from auditspec.spec.checks import Sampling

FAST = Sampling(resamples=400)


def sample(effects: Any, **fields: Any) -> Sample:
    effects = np.asarray(effects, dtype=np.float64)
    if effects.ndim == 1:
        effects = effects[:, None]
    defaults: dict[str, Any] = {
        "behavior": "b",
        "dataset": "holdout",
        "ids": np.arange(len(effects)),
        "deployed": np.zeros(len(effects)),
        "changes": effects,
        "errors": np.zeros(effects.shape[1]),
        "statistic": SliceStatistic(Mean(name="mean"), {}),
        "binary": False,
        "concern": Concern(direction="increase", tolerance=0.1),
    }
    return Sample(**(defaults | fields))


FALLING = Concern(direction="decrease", tolerance=0.1)


def one(found: Sample, options: Sampling = FAST, seed: int = 0) -> Interval:
    return intervals([found], options, seed)[found.behavior]


def half(interval: Interval) -> np.ndarray:
    return (interval.high - interval.low) / 2


# --- coverage -----------------------------------------------------------------------------------


def coverage(n: int, stages: int, behaviors: int, worlds: int, *, binary: bool) -> float:
    """Share of simulated worlds in which every interval holds its true mean."""
    generator = np.random.default_rng([n, stages, behaviors])
    held = 0
    for world in range(worlds):
        common = generator.normal(size=(n, 1, 1))
        noise = generator.normal(size=(n, behaviors, stages))
        if binary:
            before = generator.random((n, behaviors, stages)) < 0.3
            after = np.where(noise > 1.0, generator.random(noise.shape) < 0.6, before)
            effects = after.astype(float) - before
            true = np.full(behaviors * stages, 0.1586553 * (0.6 - 0.3)).reshape(behaviors, stages)
        else:
            true = np.linspace(-1, 1, behaviors * stages).reshape(behaviors, stages)
            effects = true + 0.7 * common + noise
        samples = [sample(effects[:, b], behavior=f"b{b}", binary=binary) for b in range(behaviors)]
        found = intervals(samples, FAST, world)
        held += all(
            ((found[f"b{b}"].low <= true[b]) & (true[b] <= found[f"b{b}"].high)).all()
            for b in range(behaviors)
        )
    return held / worlds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "stages", "behaviors", "binary"),
    [
        (200, 5, 2, False),
        (40, 5, 1, False),
        (10, 1, 1, False),
        (10, 5, 1, False),
        (150, 4, 1, True),
        (30, 4, 1, True),
    ],
)
def test_the_intervals_hold_together_as_often_as_they_say(
    n: int, stages: int, behaviors: int, binary: bool
) -> None:
    """Level 0.95; 400 worlds have a standard error of 0.011. Ten examples are a little too few."""
    assert coverage(n, stages, behaviors, 400, binary=binary) >= (0.9 if n == 10 else 0.92)


def test_the_intervals_cover_in_a_short_simulation() -> None:
    assert coverage(60, 4, 1, 120, binary=False) >= 0.89


def test_one_stage_has_students_interval() -> None:
    """A single mean: the classical t interval, up to the noise of the resamples."""
    stats = pytest.importorskip("scipy.stats")
    for n in (10, 25, 100):
        x = np.random.default_rng(n).normal(0.3, 1.0, size=n)
        low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
        widths = [half(one(sample(x), Sampling(resamples=20_000), seed))[0] for seed in (0, 1)]
        assert widths == pytest.approx([(high - low) / 2] * 2, rel=0.03)


def test_more_comparisons_make_every_interval_wider() -> None:
    x = np.random.default_rng(0).normal(size=(100, 20))
    widths = [half(one(sample(x[:, :k])))[0] for k in (1, 5, 20)]
    assert widths[0] < widths[1] < widths[2]
    # Independent columns: the max-T quantile is close to Sidak's, and below Bonferroni's.
    stats = pytest.importorskip("scipy.stats")
    s = x[:, 0].std(ddof=1) / 10
    sidak = stats.t.ppf(0.5 + 0.5 * 0.95 ** (1 / 20), 99) * s
    assert half(one(sample(x), Sampling(resamples=10_000)))[0] == pytest.approx(sidak, rel=0.06)


def test_columns_that_move_together_cost_nothing() -> None:
    """Twenty copies of one effect are one comparison."""
    x = np.random.default_rng(0).normal(size=100)
    alone = half(one(sample(x), Sampling(resamples=4000)))[0]
    together = half(one(sample(np.tile(x[:, None], 20)), Sampling(resamples=4000)))
    assert together == pytest.approx(np.full(20, alone), rel=1e-9)


# --- shares of 0 and 1 --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 60, 1000])
@pytest.mark.parametrize("stages", [1, 5])
def test_no_change_at_all_is_bounded_by_about_the_rule_of_three(n: int, stages: int) -> None:
    """Seeing no event in n leaves a rate of up to 3 / n open (95 %)."""
    width = half(one(sample(np.zeros((n, stages)), binary=True)))
    assert (width >= 2.99 / n).all()
    assert (width <= 5 / n).all()
    smooth = half(one(sample(np.zeros((n, stages)), binary=False)))
    assert (smooth == 0).all()  # a smooth score that never moves says so exactly


# --- joint resampling ---------------------------------------------------------------------------


def test_identical_behaviours_have_identical_intervals() -> None:
    x = np.random.default_rng(3).normal(size=(40, 3))
    found = intervals([sample(x, behavior=b) for b in ("b", "c", "d")], FAST, 5)
    for field in ("low", "high", "leads"):
        assert getattr(found["b"], field).tolist() == getattr(found["c"], field).tolist()
        assert getattr(found["b"], field).tolist() == getattr(found["d"], field).tolist()


def test_a_slice_is_read_at_its_own_rows() -> None:
    """A slice of a data set: its mean is over the slice, whatever the other behaviours read."""
    x = np.random.default_rng(3).normal(size=(200, 2))
    rows = np.arange(0, 200, 4)
    both = [sample(x), sample(x[rows], behavior="part", ids=rows)]
    options = Sampling(resamples=4000)
    found = intervals(both, options, 0)["part"]
    assert (found.low + found.high) / 2 == pytest.approx(x[rows].mean(0), abs=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    again = intervals(
        [both[0], sample(x[rows][shuffled], behavior="part", ids=rows[shuffled])], options, 0
    )["part"]
    assert again.low == pytest.approx(found.low, abs=1e-12)
    apart = sample(x[rows], behavior="part", dataset="a copy of these rows")
    alone = intervals([both[0], apart], options, 0)["part"]
    assert half(found) == pytest.approx(half(alone), rel=0.1)


def test_the_order_of_behaviours_and_signs_do_not_matter() -> None:
    x = np.random.default_rng(3).normal(size=(40, 3))
    parts = [sample(x, behavior="b"), sample(-2 * x, behavior="c", concern=FALLING)]
    forth, back = intervals(parts, FAST, 1), intervals(parts[::-1], FAST, 1)
    for name in ("b", "c"):
        assert forth[name].low == pytest.approx(back[name].low, abs=1e-12)
    assert forth["c"].low == pytest.approx(-2 * forth["b"].high, abs=1e-12)
    assert forth["c"].leads.tolist() == forth["b"].leads.tolist()


def test_data_sets_are_drawn_apart() -> None:
    x = np.random.default_rng(3).normal(size=(40, 2))
    apart = [sample(x, dataset="holdout"), sample(x, behavior="c", dataset="other")]
    found = intervals(apart, FAST, 0)
    assert found["b"].low.tolist() != found["c"].low.tolist()


def test_seeds_reproduce() -> None:
    x = np.random.default_rng(3).normal(size=(40, 3))
    first, again, other = (one(sample(x), FAST, seed) for seed in (1, 1, 2))
    assert first.low.tolist() == again.low.tolist()
    assert first.leads.tolist() == again.leads.tolist()
    assert first.low.tolist() != other.low.tolist()


def test_the_number_of_resamples_is_any_number() -> None:
    """Resamples are drawn in chunks; the last may be short."""
    x = np.random.default_rng(3).normal(1.0, 1.0, size=(50, 2))
    widths = [half(one(sample(x), Sampling(resamples=r)))[0] for r in (100, 201, 1999)]
    assert max(widths) / min(widths) < 1.35


# --- leading ------------------------------------------------------------------------------------


def test_the_probability_of_leading_is_a_normal_tail() -> None:
    """Two independent stages: P(a leads b) = Phi(gap / standard error of the gap)."""
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(3).normal(size=(200, 2))
    x -= x.mean(0)
    x[:, 0] += 0.12
    gap = x[:, 0] - x[:, 1]
    leads = one(sample(x), Sampling(resamples=20_000)).leads
    assert leads[0] == pytest.approx(stats.norm.cdf(0.12 / stats.sem(gap)), abs=0.01)
    assert leads.sum() == pytest.approx(1.0)


def test_a_larger_effect_leads_more_often() -> None:
    x = np.random.default_rng(3).normal(size=(60, 3))
    seen = []
    for shift in (-0.4, -0.2, 0.0, 0.1, 0.2, 0.4):
        moved = x.copy()
        moved[:, 1] += shift
        seen.append(one(sample(moved)).leads[1])
    assert seen == sorted(seen)
    assert seen[0] < 0.5 < seen[-1]


def test_leading_is_towards_the_concern() -> None:
    x = np.random.default_rng(3).normal(size=(60, 2)) * 0.01 + [1.0, -1.0]
    assert one(sample(x)).leads.tolist() == [1.0, 0.0]
    assert one(sample(x, concern=FALLING)).leads.tolist() == [0.0, 1.0]


def test_ties_lead_nobody_and_one_stage_leads_always() -> None:
    assert one(sample(np.ones((30, 2)))).leads.tolist() == [0.0, 0.0]
    assert one(sample(np.ones(30))).leads.tolist() == [1.0]


# --- the estimator's own error ------------------------------------------------------------------


def test_the_estimators_error_widens_by_itself_and_doubts_the_lead() -> None:
    x = np.random.default_rng(3).normal(size=(60, 2)) * 0.1 + [0.5, 0.3]
    sure = one(sample(x))
    unsure = one(sample(x, errors=np.array([0.0, 0.15])))
    assert half(unsure) - half(sure) == pytest.approx([0.0, 0.15], abs=1e-12)
    assert sure.leads[0] == 1.0
    assert unsure.leads[0] < sure.leads[0]
    lost = one(sample(x, errors=np.array([0.0, 0.5])))
    assert lost.leads.tolist() == [0.0, 0.0]


def test_an_unknown_error_leaves_no_interval_and_no_leader() -> None:
    found = one(sample(np.ones((30, 2)) * [5.0, 0.0], errors=np.array([np.inf, 0.0])))
    assert found.low[0] == -np.inf
    assert found.high[0] == np.inf
    assert np.isfinite([found.low[1], found.high[1]]).all()
    assert found.leads.tolist() == [0.0, 0.0]


# --- the check ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "direction", "undecided"),
    [
        (0.2, 0.3, "increase", 0),  # above the tolerance
        (0.1, 0.3, "increase", 1),  # begins at it
        (0.0, 0.1, "increase", 0),  # ends at it: decided
        (0.0, 0.2, "increase", 1),
        (-0.3, 0.05, "increase", 0),
        (-0.3, -0.2, "decrease", 0),
        (-0.3, -0.05, "decrease", 1),
        (-0.1, 0.3, "decrease", 0),
        (-np.inf, np.inf, "increase", 1),
    ],
)
def test_an_interval_around_the_tolerance_is_undecided(
    low: float, high: float, direction: Any, undecided: int
) -> None:
    part = sample(np.zeros(20), concern=Concern(direction=direction, tolerance=0.1))
    found = {"b": Interval(np.array([low]), np.array([high]), np.array([1.0]))}
    result = SamplingCheck([part], found, FAST).run()
    assert result.statistic == undecided
    assert result.outcome == ("inconclusive" if undecided else "pass")


def test_too_few_examples_are_inconclusive_whatever_they_say() -> None:
    for n, outcome in ((9, "inconclusive"), (10, "pass")):
        part = sample(np.zeros(n))
        result = SamplingCheck([part], {"b": one(part)}, FAST).run()
        assert result.outcome == outcome
        assert ("fewer than 10 examples for b" in said(result.reasons)) == (n < 10)


def test_every_behaviour_has_its_line() -> None:
    parts = [sample(np.zeros((20, 2))), sample(np.ones((20, 2)) * 0.1, behavior="c")]
    found = intervals(parts, FAST, 0)
    wide = replace(found["c"], high=found["c"].high + 1)
    result = SamplingCheck(parts, found | {"c": wide}, FAST).run()
    assert [(d.subject, d.statistic, d.outcome) for d in result.details] == [
        ("b", 0, "pass"),
        ("c", 2, "inconclusive"),
    ]
