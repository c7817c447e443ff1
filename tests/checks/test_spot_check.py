from __future__ import annotations

from typing import Any

import pytest
from said import said, saying

from auditspec.checks.spot_check import SpotCheck
from auditspec.spot_checks import Comparison, worst_relative_error


def comparison(**fields: Any) -> Comparison:
    defaults: dict[str, Any] = {
        "stage": "one",
        "behavior": "b",
        "estimate": 1.0,
        "exact": 1.0,
        "half_width": 0.2,
        "tolerance": 0.1,
        "relative_error": 0.05,
    }
    return Comparison(**(defaults | fields))


@pytest.mark.parametrize(
    ("estimate", "exact", "half_width", "tolerance", "passed"),
    [
        (1.0, 1.25, 0.25, 0.1, True),  # within the interval, at its edge
        (1.0, 1.25, 0.2, 0.1, False),
        (1.0, 1.25, 0.1, 0.25, True),  # within the tolerance
        (-1.0, -1.25, 0.25, 0.1, True),
        (0.3, -0.3, 5.0, 0.1, False),  # a wide interval does not excuse the wrong sign
        (0.0, 0.3, 5.0, 0.1, False),  # nor seeing nothing
        (0.05, -0.05, 0.2, 0.1, True),  # both too small to matter
        (0.1, -0.1, 0.2, 0.1, True),
        (0.11, -0.05, 0.5, 0.1, False),
        (0.0, 0.0, 0.0, 0.0, True),
        (0.2, 0.3, 0.2, 0.0, True),
        (0.1, 0.0, 0.2, 0.0, False),
    ],
)
def test_agreement_is_within_the_interval_and_in_sign(
    estimate: float, exact: float, half_width: float, tolerance: float, passed: bool
) -> None:
    for a, b in ((estimate, exact), (-estimate, -exact)):
        one = comparison(estimate=a, exact=b, half_width=half_width, tolerance=tolerance)
        assert bool(one.passed) is passed


def test_one_disagreement_fails_the_check_and_is_told() -> None:
    bad = comparison(stage="two", behavior="c", estimate=1.0, exact=-3.0)
    found = SpotCheck([comparison(), bad], ["three"], 12).run()
    assert (found.outcome, found.statistic, found.threshold, found.gradients) == ("fail", 1, 0, 12)
    assert "two on c" in said(found.reasons)
    assert "\N{MINUS SIGN}3" in said(found.reasons)
    assert "one" not in said(found.reasons)
    assert [(d.subject, d.outcome) for d in found.details] == [
        ("one / b", "pass"),
        ("two / c", "fail"),
        ("three", "pass"),
    ]


def test_agreement_names_the_replayed_stages() -> None:
    found = SpotCheck([comparison(), comparison(behavior="c")], [], 6).run()
    assert (found.outcome, found.statistic) == ("pass", 0)
    assert said(found.reasons).endswith("replay of one")


def test_replays_need_no_check() -> None:
    found = SpotCheck([], ["one", "two"], 0).run()
    assert (found.outcome, found.statistic, found.gradients) == ("pass", 0, 0)
    assert [said(d.notes) for d in found.details] == ["is an exact replay itself"] * 2


def test_a_check_that_was_not_run_says_so() -> None:
    found = SpotCheck.skipped(saying("no budget"))
    assert (found.id, found.outcome, said(found.reasons)) == ("spot-check", "not-run", "no budget")
    assert found.statistic is None


def test_the_worst_error_is_taken_per_behaviour() -> None:
    found = worst_relative_error(
        [
            comparison(relative_error=0.1),
            comparison(stage="two", relative_error=0.4),
            comparison(behavior="c", relative_error=0.2),
        ]
    )
    assert found == {"b": 0.4, "c": 0.2}
    assert worst_relative_error([]) == {}
