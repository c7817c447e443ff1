"""What every statistic promises, whatever it makes of the scores; and the mean's own formulas."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from factories import minimal_spec
from measures import (
    STATISTIC_OPTIONS,
    ExpMean,
    Median,
    every_statistic,
    metric_of,
    statistic_of,
)

from auditspec.behaviors.statistics import (
    STATISTICS,
    Counts,
    Floats,
    SliceStatistic,
    Statistic,
    classes,
)
from auditspec.behaviors.statistics.interface import DRAWS, PARTS, student
from auditspec.behaviors.statistics.mean import Mean, agresti_min
from auditspec.spec.measures import TOKENS, DeclaredStatistic
from auditspec.spec.models import Spec

N, S, R = 60, 3, 25
EVERY = pytest.mark.parametrize("statistic", every_statistic(), ids=lambda s: s.words)
MEAN = SliceStatistic(Mean(name="mean"), {})


def bound(statistic: Statistic, n: int = N) -> SliceStatistic:
    """On a slice in which every third example is of the group, and every other one won."""
    columns = {"sex": (np.arange(n) % 3 == 0).astype(int), "won": np.arange(n) % 2}
    read = {name: columns[name] for name in statistic.columns}
    tokens = {TOKENS: 1 + np.arange(n) % 4} if statistic.reads_tokens else {}
    return SliceStatistic(statistic, read | tokens)


@pytest.fixture
def scores() -> Floats:
    return np.random.default_rng(0).gamma(2.0, size=N)


@pytest.fixture
def changes() -> Floats:
    return np.random.default_rng(1).normal(0.1, 0.3, size=(N, S))


@pytest.fixture
def counts() -> Counts:
    return np.random.default_rng(2).multinomial(N, np.full(N, 1 / N), size=R)


# --- all ------------------------------------------------------------------------------------------


def test_every_statistic_is_held_to_this_and_has_its_own_name() -> None:
    assert set(STATISTICS) <= set(STATISTIC_OPTIONS)
    assert list(classes()) == [statistic.name for statistic in STATISTICS]


@EVERY
def test_it_says_what_it_is(statistic: Statistic) -> None:
    assert statistic.words
    assert statistic.unit("nats")
    assert type(statistic).__doc__
    assert set(statistic.columns.values()) <= set(type(statistic).model_fields)


def test_a_spec_reads_it_and_writes_it_again() -> None:
    data = minimal_spec()
    spec = Spec.model_validate_json(json.dumps(data), strict=True)
    assert spec.behaviors[0].statistic == Mean(name="mean")
    stored = json.loads(spec.model_dump_json(by_alias=True))["behaviors"][0]["statistic"]
    assert stored == {"name": "mean"}
    assert DeclaredStatistic.of({"name": "mean", "trimmed": 0.1}) is None


@EVERY
def test_several_columns_of_scores_are_taken_one_by_one(
    statistic: Statistic, scores: Floats, changes: Floats, counts: Counts
) -> None:
    on, several = bound(statistic), scores[:, None] + changes
    whole = statistic.level(several, on.columns)
    assert whole.tolist() == pytest.approx([on.level(several[:, s]) for s in range(S)], rel=1e-12)
    drawn = statistic.resampled(several, counts, on.columns)
    assert drawn.shape == (R, S)
    for s in range(S):
        assert on.resampled(several[:, s], counts) == pytest.approx(drawn[:, s], rel=1e-12)


@EVERY
def test_the_order_of_the_examples_does_not_matter(
    statistic: Statistic, scores: Floats, changes: Floats, counts: Counts
) -> None:
    on, order = bound(statistic), np.random.default_rng(3).permutation(N)
    other = on.at(order)
    assert other.level(scores[order]) == pytest.approx(on.level(scores), rel=1e-12)
    assert other.effects(scores[order], changes[order]) == pytest.approx(
        on.effects(scores, changes)
    )
    assert other.resampled(scores[order], counts[:, order]) == pytest.approx(
        on.resampled(scores, counts), rel=1e-12
    )


@EVERY
def test_resampling_is_recomputing_on_the_rows_that_were_drawn(
    statistic: Statistic, scores: Floats, changes: Floats, counts: Counts
) -> None:
    on = bound(statistic)
    levels, effects = on.resampled(scores, counts), on.resampled_effects(scores, changes, counts)
    for drawn, level, effect in zip(counts, levels, effects, strict=True):
        rows = np.repeat(np.arange(N), drawn)
        there = on.at(rows)
        assert level == pytest.approx(there.level(scores[rows]), rel=1e-12)
        assert effect == pytest.approx(there.effects(scores[rows], changes[rows]), abs=1e-12)


@EVERY
def test_an_effect_is_the_level_with_less_the_level_without(
    statistic: Statistic, scores: Floats, changes: Floats
) -> None:
    on = bound(statistic)
    for s, effect in enumerate(on.effects(scores, changes)):
        with_, without = on.level(scores), on.level(scores - changes[:, s])
        assert effect == pytest.approx(with_ - without, abs=1e-12)
        assert on.effect(scores, changes[:, s]) == pytest.approx(effect, abs=1e-12)
    assert on.effect(scores, np.zeros(N)) == 0.0


@EVERY
def test_one_that_calls_itself_linear_adds_up(
    statistic: Statistic, scores: Floats, changes: Floats
) -> None:
    on = bound(statistic)
    a, b = (
        scores,
        changes[:, 0] - scores,
    )  # levels that are only piecewise linear change their piece
    assert (on.level(2 * a - b) == pytest.approx(2 * on.level(a) - on.level(b))) is statistic.linear


@EVERY
def test_its_weights_are_its_derivatives(statistic: Statistic, scores: Floats) -> None:
    on = bound(statistic)
    scores = scores / scores.max() * 0.99  # within all bins of probabilities
    weights = on.weights(scores)
    if weights is None:
        assert statistic.name in ("median", "exp-mean")
        return
    steps = np.eye(N) * 1e-6
    moved = [on.level(scores + step) - on.level(scores - step) for step in steps]
    assert weights == pytest.approx(np.array(moved) / 2e-6, abs=1e-7)


@EVERY
def test_the_distance_of_two_estimates_is_at_least_that_of_their_levels(
    statistic: Statistic, scores: Floats, changes: Floats
) -> None:
    on, ours, theirs = bound(statistic), changes[:, 0], changes[:, 1]
    apart = abs(on.effect(scores, ours) - on.effect(scores, theirs))
    distance = on.effect_distance(scores, ours, theirs)
    assert distance >= apart - 1e-12
    assert distance > 0
    assert on.effect_distance(scores, theirs, ours) == pytest.approx(distance)
    assert on.effect_distance(scores, ours, ours) == 0.0
    assert on.size(scores, ours) == pytest.approx(on.effect_distance(scores, ours, 0 * ours))


@EVERY
def test_estimates_that_agree_on_all_examples_by_chance_are_still_apart(
    statistic: Statistic, scores: Floats
) -> None:
    """As many scores up as down, in the group and elsewhere: means are the same, and the examples are not."""
    on, change = bound(statistic), np.empty(N)
    shuffle = np.random.default_rng(4)
    for cell in range(6):  # as sex and won repeat
        rows = np.arange(N) % 6 == cell
        change[rows] = shuffle.permutation(np.repeat([0.5, -0.5], rows.sum() // 2))
    if statistic.linear:
        assert on.effect(scores, change) == pytest.approx(0.0, abs=1e-12)
    assert on.effect_distance(scores, change, np.zeros(N)) > 0.1


@EVERY
def test_its_standard_error_is_that_of_the_bootstrap(
    statistic: Statistic, scores: Floats, changes: Floats
) -> None:
    on, change = bound(statistic), changes[:, 0]
    draws = np.random.default_rng(5).multinomial(N, np.full(N, 1 / N), size=4000)
    spread = on.resampled_effects(scores, change[:, None], draws).std()
    found = on.standard_error(scores, change)
    assert found == pytest.approx(spread, rel=4 / math.sqrt(2 * DRAWS))
    assert found == on.standard_error(scores, change)


@EVERY
def test_one_example_moves_it_as_far_as_it_says(statistic: Statistic) -> None:
    on, right = bound(statistic), (np.arange(N) % 4 == 1).astype(float)
    flips = [np.where(np.arange(N) == i, 1 - right, right) for i in range(N)]
    furthest = max(abs(on.level(flip) - on.level(right)) for flip in flips)
    assert statistic.largest_step(right, on.columns) == pytest.approx(furthest, rel=1e-9)


@EVERY
def test_its_bounds_hold(statistic: Statistic, scores: Floats) -> None:
    on = bound(statistic)
    share = scores / scores.max()
    least, most = statistic.bounds(0.0, 1.0)
    assert least <= on.level(share) <= most
    wild = scores - scores.mean()
    least, most = statistic.bounds(-math.inf, math.inf)
    score = metric_of("custom", entrypoint="train:score", unit="points")
    if not all(statistic.misread(score, towards) for towards in ("increase", "decrease")):
        assert least <= on.level(wild) <= most
    if statistic.name in ("mean", "median", "exp-mean", "quantile", "bias"):
        assert (least, most) == (-math.inf, math.inf)


@EVERY
def test_half_widths_grow_with_the_error_and_with_the_quantile(
    statistic: Statistic, scores: Floats, changes: Floats
) -> None:
    on, spreads = bound(statistic), np.array([0.1, 0.2, 0.4])
    one, two = (on.half_widths(scores, changes, spreads, c, 0.95, binary=False) for c in (2.0, 3.0))
    assert (one >= 2.0 * spreads).all()
    assert (two > one).all()
    assert (np.diff(one) > 0).all()


def test_a_resample_without_a_group_is_taken_as_the_examples_are() -> None:
    on = bound(statistic_of("difference", by="sex", group=1), 6)
    scores, counts = np.arange(6.0), np.array([[0, 3, 3, 0, 0, 0], [2, 1, 1, 0, 1, 1]])
    assert on.resampled(scores, counts).tolist() == [on.level(scores), 0.0 - (1 + 2 + 4 + 5) / 4]
    empty = np.zeros((1, 6), dtype=np.int64)
    assert on.resampled(scores, empty).tolist() == [on.level(scores)]


# --- each by hand ---------------------------------------------------------------------------------


def test_levels_by_hand() -> None:
    scores, sex = np.array([1.0, 2.0, 4.0, 9.0]), {"sex": np.array([1, 0, 0, 1])}
    assert MEAN.level(scores) == 4.0
    assert SliceStatistic(Median(name="median"), {}).level(scores) == 3.0
    assert SliceStatistic(statistic_of("difference", by="sex", group=1), sex).level(scores) == 2
    assert SliceStatistic(statistic_of("ratio", by="sex"), sex).level(scores) == 3 / 5
    exp_mean = ExpMean(name="exp-mean")
    assert SliceStatistic(exp_mean, {}).level(np.log(np.full(7, 10.0))) == pytest.approx(10.0)
    assert exp_mean.uninformed(math.log(10.0)) == pytest.approx(10.0)
    nats, tokens = np.log([2.0, 64.0]), {"tokens": np.array([1, 3])}
    assert SliceStatistic(statistic_of("perplexity"), tokens).level(nats) == pytest.approx(
        128**0.25
    )


def test_effects_of_the_mean_are_means_to_the_last_bit(changes: Floats, scores: Floats) -> None:
    for s in range(S):
        assert MEAN.effect(scores, changes[:, s]) == changes[:, s].mean()
    assert np.array_equal(MEAN.effects(scores, changes), changes.mean(0))


def test_resamples_of_the_mean_are_its_sums_over_the_rows_drawn(
    changes: Floats, scores: Floats, counts: Counts
) -> None:
    total = counts.sum(1, keepdims=True)
    assert np.array_equal(MEAN.resampled(scores, counts), counts / total @ scores)
    drawn = MEAN.resampled_effects(scores, changes, counts)
    assert np.array_equal(drawn, counts @ changes / total)
    nothing = MEAN.resampled_effects(scores, changes, np.zeros_like(counts))
    assert not nothing.any()


def test_the_distance_of_two_means_is_the_root_mean_square_over_examples(changes: Floats) -> None:
    a, b = changes[:, 0], changes[:, 1]
    assert MEAN.effect_distance(np.zeros(N), a, b) == float(np.sqrt(np.mean((a - b) ** 2)))
    assert MEAN.size(np.zeros(N), a) == float(np.sqrt(np.mean(a**2)))


def test_the_distance_of_two_medians_is_the_larger_of_the_whole_and_its_tenths(
    scores: Floats, changes: Floats
) -> None:
    on, a, b = SliceStatistic(Median(name="median"), {}), changes[:, 0], changes[:, 1]

    def apart(rows: slice) -> float:
        return float(np.median((scores - a)[rows]) - np.median((scores - b)[rows]))

    tenths = [apart(slice(start, None, PARTS)) for start in range(PARTS)]
    expected = max(abs(apart(slice(None))), math.sqrt(np.mean(np.square(tenths))))
    assert on.effect_distance(scores, a, b) == pytest.approx(expected, rel=1e-12)


def test_the_standard_error_of_a_mean_is_the_textbooks(changes: Floats) -> None:
    change = changes[:, 0]
    assert MEAN.standard_error(change, change) == pytest.approx(change.std(ddof=1) / math.sqrt(N))
    assert MEAN.standard_error(change[:1], change[:1]) == 0.0


@pytest.mark.parametrize("freedom", [9, 20, 100, 10_000])
@pytest.mark.parametrize("z", [1.0, 1.96, 2.7, 3.5])
def test_student_equals_scipys_quantile(z: float, freedom: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student(z, freedom) == pytest.approx(stats.t.ppf(stats.norm.cdf(z), freedom), rel=5e-3)


def test_agresti_min_is_its_closed_form() -> None:
    """n = 20: 6 rise, 2 fall; N = 22, p+ = 6.5/22, p- = 2.5/22."""
    effects = np.array([1.0] * 6 + [-1.0] * 2 + [0.0] * 12)[:, None]
    expected = np.sqrt((6.5 + 2.5 - (6.5 - 2.5) ** 2 / 22) / 22**2)
    assert agresti_min(effects) == pytest.approx(expected, rel=1e-12)
    assert agresti_min(-effects) == pytest.approx(agresti_min(effects))
    assert agresti_min(np.zeros((98, 1))) == pytest.approx(1 / 100)
