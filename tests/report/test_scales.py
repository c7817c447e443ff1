"""Axes: values become pixels in proportion, and ticks are round."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.report.charts.scales import Linear, Logarithmic

SIZES = st.floats(min_value=1e-9, max_value=1e12)


@pytest.mark.parametrize(
    ("low", "high", "count", "texts"),
    [
        (-0.5, 1.5, 6, ["−0.5", "0.0", "0.5", "1.0", "1.5"]),
        (-1.08, 1.08, 5, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0, 2.3, 4, ["0.0", "0.5", "1.0", "1.5", "2.0"]),
        (-3, 9, 4, ["−2", "0", "2", "4", "6", "8"]),
        (95, 97.1, 4, ["95.0", "95.5", "96.0", "96.5", "97.0"]),
        (0, 25000, 4, ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]),
        (0, 4e-9, 4, ["0", "1e-09", "2e-09", "3e-09", "4e-09"]),
        (-2_001_200, -2_000_000, 3, ["−2.001e+06", "−2.0005e+06", "−2e+06"]),
    ],
)
def test_round_values_between(low: float, high: float, count: int, texts: list[str]) -> None:
    assert [tick.text for tick in Linear(low, high, 0, 100).ticks(count)] == texts


@given(st.floats(-1e9, 1e9), SIZES, st.integers(3, 8))
def test_ticks_lie_within_at_equal_distances(low: float, size: float, count: int) -> None:
    high = low + max(size, 1e-6 * abs(low))
    ticks = [tick.value for tick in Linear(low, high, 0, 100).ticks(count)]
    slack = 1e-6 * (high - low)
    assert count / 2 - 1 <= len(ticks) <= 2 * count + 1
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3) if steps else True


def test_powers_of_ten() -> None:
    scale = Logarithmic(3e-13, 0.9, 110, 0)
    assert [tick.text for tick in scale.ticks(5)] == [f"1e{k}" for k in range(-12, 0, 2)]
    assert [tick.text for tick in Logarithmic(1e-5, 0.1, 84, 0).ticks(4)] == [
        "1e-5", "1e-4", "1e-3", "1e-2", "1e-1",
    ]  # fmt: skip
    assert scale(1e-12) - scale(1e-6) == pytest.approx(scale(1e-6) - scale(1.0))


@given(st.floats(-1e6, 1e6), SIZES)
def test_ends_are_the_ends(low: float, size: float) -> None:
    high = low + max(size, 1e-3 * abs(low))
    scale = Linear(low, high, 110, 0)
    assert (scale(low), scale(high)) == (110, pytest.approx(0, abs=1e-6))
    assert scale((low + high) / 2) == pytest.approx(55, abs=1e-3)
    logarithmic = Logarithmic(size, 100 * size, 0, 2)
    assert logarithmic(10 * size) == pytest.approx(1) and math.isclose(logarithmic(size), 0)
