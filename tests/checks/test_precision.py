"""precision: the same numbers in two precisions."""

from __future__ import annotations

import pytest
from said import said

from auditspec.checks.precision import Precision, TwoPrecisions
from auditspec.spec.checks import Precision as Options


def pair(narrow: float, wide: float, scale: float, behavior: str | None = "b") -> TwoPrecisions:
    return TwoPrecisions("subject", narrow, wide, scale, "one", behavior)


@pytest.mark.parametrize(
    ("narrow", "wide", "scale", "outcome", "change"),
    [
        (1.0, 1.0, 1.0, "pass", 0.0),
        (1.01, 1.0, 1.0, "pass", 0.01),
        (1.02, 1.0, 1.0, "fail", 0.02),
        (-1.0, 1.0, 1.0, "fail", 2.0),
        (0.5, 0.5, 0.0, "pass", 0.0),
        (0.5, 0.4, 0.0, "fail", None),  # nothing to hold it against
    ],
)
def test_the_change_is_relative(
    narrow: float, wide: float, scale: float, outcome: str, change: float | None
) -> None:
    found = Precision([pair(narrow, wide, scale)], 10, 4.0, Options(threshold=0.0101)).run()
    assert found.outcome == outcome
    assert found.gradients == 4.0
    assert found.statistic == (None if change is None else pytest.approx(change))


def test_every_changed_effect_is_named() -> None:
    pairs = [pair(1.0, 1.0, 1.0), pair(2.0, 1.0, 1.0), pair(3.0, 1.0, 1.0, None)]
    found = Precision(pairs, 10, 0.0, Options()).run()
    assert (found.outcome, found.statistic) == ("fail", 2.0)
    assert [d.outcome for d in found.details] == ["pass", "fail", "fail"]
    assert said(found.details[1].notes) == "2, with float64 1"
    assert found.details[2].behavior is None


def test_an_estimate_in_float64_has_nothing_to_compare() -> None:
    found = Precision([], 0, 0.0, Options()).run()
    assert (found.outcome, found.statistic) == ("pass", None)
    assert "float64" in said(found.reasons)
