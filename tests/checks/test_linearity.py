"""linearity: two readings of one displacement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from said import said

from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.mean import Mean
from auditspec.checks.linearity import Linearity, TwoReadings
from auditspec.spec.checks import Linearity as Options

MEAN = SliceStatistic(Mean(name="mean"), {})


def readings(plug_in: Any, linear: Any, **fields: Any) -> TwoReadings:
    defaults: dict[str, Any] = {
        "stage": "one",
        "behavior": "b",
        "plug_in": float(np.mean(plug_in)),
        "linear": float(np.mean(linear)),
        "apart": MEAN.effect_distance(
            *(np.array(x, dtype=float) for x in (plug_in, plug_in, linear))
        ),
        "size": MEAN.size(*(np.array(x, dtype=float) for x in (plug_in, plug_in))),
        "tolerance": 0.1,
        "first_order": True,
    }
    return TwoReadings(**(defaults | fields))


@pytest.mark.parametrize(
    ("plug_in", "linear", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([3.0, 4.0], [-3.0, -4.0], 2.0),
        ([1.0, -1.0], [1.5, -1.5], 0.5),  # equal means do not hide it
        ([0.01, 0.01], [0.04, 0.04], 0.3),  # held against the tolerance
    ],
)
def test_disagreement_is_relative_to_the_plug_in_reading(
    plug_in: list[float], linear: list[float], expected: float
) -> None:
    assert readings(plug_in, linear).disagreement == pytest.approx(expected)


def test_a_first_order_estimate_far_from_linear_fails_where_it_is() -> None:
    good = readings([1.0], [0.9])
    bad = readings([1.0], [2.0], stage="two", behavior="c")
    found = Linearity([good, bad], Options()).run()
    assert (found.outcome, found.statistic, found.threshold) == ("fail", 1.0, 0.5)
    assert "two on c" in said(found.reasons)
    assert [(d.stage, d.behavior, d.outcome) for d in found.details] == [
        ("one", "b", "pass"),
        ("two", "c", "fail"),
    ]
    assert Linearity([good], Options()).run().outcome == "pass"
    assert Linearity([good], Options(threshold=0.05)).run().outcome == "fail"


def test_an_effect_that_is_read_plug_in_is_described_and_not_gated() -> None:
    found = Linearity([readings([1.0], [9.0], first_order=False)], Options()).run()
    assert (found.outcome, found.statistic) == ("pass", None)
    assert found.details[0].statistic == 8.0
    assert "far from linear" in said(found.details[0].notes)


def test_a_first_order_estimate_without_a_slope_has_not_passed() -> None:
    alone = Linearity([], Options(), [("one", "accuracy")]).run()
    assert (alone.outcome, alone.details[0].behavior) == ("inconclusive", "accuracy")
    beside = Linearity([readings([1.0], [0.9])], Options(), [("one", "accuracy")]).run()
    assert beside.outcome == "inconclusive"
    assert [d.outcome for d in beside.details] == ["pass", "inconclusive"]
    worse = Linearity([readings([1.0], [2.0])], Options(), [("one", "accuracy")]).run()
    assert worse.outcome == "fail"
