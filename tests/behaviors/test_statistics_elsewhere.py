"""Statistics of groups, calibration, and errors as fairlearn and scikit-learn compute them, on any data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measures import statistic_of
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from auditspec.behaviors.statistics import SliceStatistic

fairlearn = pytest.importorskip("fairlearn.metrics")
GROUPS = np.array(["a", "b", "c"])


class Drawn:
    """People of three groups and two regions, with a truth, a prediction, its probability, and an error."""

    def __init__(self, seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        every = np.repeat(np.arange(12), 2)  # two of each group, region, and truth
        cell = np.concatenate([every, rng.integers(0, 12, n)])
        self.sex, self.region, self.truth = GROUPS[cell % 3], cell // 3 % 2, cell // 6
        self.probability = rng.beta(rng.uniform(0.3, 3), rng.uniform(0.3, 3), len(cell))
        self.chosen = (self.probability > rng.uniform(0.1, 0.9)).astype(int)
        self.predicted = rng.normal(rng.uniform(-1, 1), 2, len(cell))
        self.actual = rng.normal(size=len(cell))

    def level(self, name: str, scores: np.ndarray, **options: Any) -> float:
        columns = {"sex": self.sex, "region": self.region, "truth": self.truth}
        statistic = statistic_of(name, **options)
        assert statistic.misfit({c: columns[c] for c in statistic.columns}) is None
        on = SliceStatistic(statistic, {c: columns[c] for c in statistic.columns})
        return on.level(scores.astype(float))


drawn = given(d=st.builds(Drawn, st.integers(0, 2**32), st.integers(0, 60)))
TWO = {"by": ["sex", "region"], "floor": 2}
ONE = {"by": "sex", "floor": 2}


def frame(metric: Any, d: Drawn, y: Any, prediction: Any, by: tuple[str, ...]) -> Any:
    sensitive = {name: getattr(d, name) for name in by}
    return fairlearn.MetricFrame(
        metrics=metric, y_true=y, y_pred=prediction, sensitive_features=sensitive
    )


@drawn
def test_demographic_parity(d: Drawn) -> None:
    against = {"y_true": d.truth, "y_pred": d.chosen, "sensitive_features": d.sex}
    assert d.level("difference", d.chosen, **ONE) == pytest.approx(
        fairlearn.demographic_parity_difference(**against), abs=1e-12
    )
    if d.chosen.any():
        assert d.level("ratio", d.chosen, **ONE) == pytest.approx(
            fairlearn.demographic_parity_ratio(**against), abs=1e-12
        )
    else:  # fairlearn divides 0 by 0: nobody is treated otherwise
        assert d.level("ratio", d.chosen, **ONE) == 1.0


@drawn
def test_equalized_odds(d: Drawn) -> None:
    expected = fairlearn.equalized_odds_difference(d.truth, d.chosen, sensitive_features=d.sex)
    options = ONE | {"truth": "truth", "positive": 1}
    assert d.level("equalized-odds", d.chosen, **options) == pytest.approx(expected, abs=1e-12)
    true = d.truth == 1
    gap = fairlearn.equal_opportunity_difference(d.truth, d.chosen, sensitive_features=d.sex)
    d.sex, d.region, d.truth = d.sex[true], d.region[true], d.truth[true]
    assert d.level("difference", d.chosen[true], **ONE) == pytest.approx(gap, abs=1e-12)


@drawn
def test_groups_of_two_columns(d: Drawn) -> None:
    rates = frame(fairlearn.selection_rate, d, d.truth, d.chosen, ("sex", "region"))
    assert len(rates.by_group) == 6
    for name, options, expected in (
        ("difference", {}, rates.difference()),
        ("worst-group", {"worst": "highest"}, rates.group_max()),
        ("worst-group", {"worst": "lowest"}, rates.group_min()),
        (
            "difference",
            {"group": ["a", 1], "reference": ["b", 0]},
            rates.by_group["a", 1] - rates.by_group["b", 0],
        ),
    ):
        found = d.level(name, d.chosen, **TWO, **options)
        assert found == pytest.approx(expected, abs=1e-12), (name, options)


@drawn
@pytest.mark.parametrize(
    ("average", "metric"),
    [
        ("mae", sklearn.mean_absolute_error),
        ("rmse", sklearn.root_mean_squared_error),
        ("bias", lambda y_true, y_pred: float(np.mean(y_pred - y_true))),
    ],
)
def test_errors_of_values(d: Drawn, average: str, metric: Any) -> None:
    errors = d.predicted - d.actual
    assert d.level(average, errors) == pytest.approx(metric(d.actual, d.predicted), abs=1e-12)
    of = frame(metric, d, d.actual, d.predicted, ("sex",))
    options = ONE | {"average": average}
    assert d.level("difference", errors, **options) == pytest.approx(of.difference(), abs=1e-12)
    worst = d.level("worst-group", errors, worst="highest", **options)
    assert worst == pytest.approx(of.group_max(), abs=1e-12)
    if average != "bias":
        assert d.level("ratio", errors, **options) == pytest.approx(of.ratio(), abs=1e-12)


@drawn
def test_calibration(d: Drawn) -> None:
    """Shares and mean probabilities of scikit-learn's bins, weighted by how many each holds."""
    shares, means = calibration_curve(d.truth, d.probability, n_bins=7, strategy="uniform")
    inside, _ = np.histogram(d.probability, np.linspace(0, 1, 8))
    expected = np.abs(shares - means) @ inside[inside > 0] / len(d.truth)
    found = d.level("ece", d.probability, truth="truth", positive=1, bins=7)
    assert found == pytest.approx(expected, abs=1e-12)


@drawn
def test_quantiles(d: Drawn) -> None:
    """Type 7: the line through the order statistics at (k - 1) / (n - 1)."""
    ordered = np.sort(d.predicted)
    expected = np.interp(0.8, np.linspace(0, 1, len(ordered)), ordered)
    assert d.level("quantile", d.predicted, q=0.8) == pytest.approx(expected, abs=1e-12)
