import math

import numpy as np
import pytest

from benchmarks import metrics


def test_relative_error_is_the_norm_of_the_difference_over_that_of_the_truth() -> None:
    exact = np.array([[3.0, 0.0], [0.0, 4.0]])
    estimate = np.array([[3.0, 1.0], [2.0, 2.0]])
    assert metrics.relative_error(estimate, exact) == pytest.approx(math.sqrt(1 + 4 + 4) / 5)
    assert metrics.relative_error(np.zeros((2, 2)), exact) == 1
    assert math.isnan(metrics.relative_error(estimate, np.zeros((2, 2))))


def test_root_mean_square() -> None:
    assert metrics.rms(np.array([3.0, -4.0])) == pytest.approx(math.sqrt(12.5))


def test_pearson_by_hand() -> None:
    # deviations (-1, 0, 1) and (-1, 1, 0): 1 / 2
    assert metrics.pearson(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
    assert math.isnan(metrics.pearson(np.zeros(3), np.array([1.0, 2, 3])))


def test_spearman_sees_only_the_order_and_gives_ties_their_mean_rank() -> None:
    assert metrics.spearman(np.array([1.0, 10, 100]), np.array([1.0, 2, 3])) == pytest.approx(1)
    # ranks (1.5, 1.5, 3) and (1, 2, 3): 1.5 / sqrt(1.5 * 2)
    found = metrics.spearman(np.array([5.0, 5, 7]), np.array([1.0, 2, 3]))
    assert found == pytest.approx(1.5 / math.sqrt(3))


def test_a_leader_is_decisive_only_where_its_margin_exceeds_the_bootstrap_interval() -> None:
    steady = np.array([[0.0] * 40, [1.0] * 40, [0.5] * 40])
    found = metrics.leader(steady, np.random.default_rng(0))
    assert (found.stage, found.decisive) == (1, True)
    noise = np.random.default_rng(1).normal(size=40)
    close = np.stack([noise - noise.mean() + 0.01, np.zeros(40)])
    found = metrics.leader(close, np.random.default_rng(0))
    assert (found.stage, found.decisive) == (0, False)


def test_the_leading_share_counts_only_decisive_behaviours() -> None:
    led_by_0, led_by_1 = np.array([[1.0] * 9, [0.0] * 9]), np.array([[0.0] * 9, [1.0] * 9])
    undecided = np.array([[1.0, -1.0] * 5, [0.0] * 10])
    exact = [led_by_0, led_by_1, undecided]
    assert metrics.leading(exact, exact, seed=0) == (2, 2)
    assert metrics.leading(exact, [led_by_1, led_by_1, undecided], seed=0) == (1, 2)


def test_predicting_nothing_names_no_leader() -> None:
    led_by_0 = np.array([[1.0] * 9, [0.0] * 9])
    assert metrics.leading([led_by_0], [np.zeros((2, 9))], seed=0) == (0, 1)


def test_coverage_counts_estimates_that_reach_the_true_error() -> None:
    assert metrics.coverage([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 1.0]) == 0.75
    assert math.isnan(metrics.coverage([], []))


def test_medians_leave_out_what_is_no_number() -> None:
    assert metrics.median([3.0, None, 1.0, math.nan, 2.0]) == 2
    assert math.isnan(metrics.median([None]))
