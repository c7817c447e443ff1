"""refinement: the estimates' own error beside the largest effect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from said import said

from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.mean import Mean
from auditspec.checks.refinement import Refinement
from auditspec.intervals import Sample
from auditspec.results import Concern
from auditspec.spec.checks import Refinement as Options

STAGES = ("one", "two")


def sample(
    effects: tuple[float, float],
    errors: tuple[float, float],
    tolerance: float = 0.1,
    **fields: Any,
) -> Sample:
    defaults: dict[str, Any] = {
        "behavior": "b",
        "dataset": "holdout",
        "ids": np.arange(3),
        "deployed": np.zeros(3),
        "changes": np.tile(np.array(effects), (3, 1)),
        "errors": np.array(errors),
        "statistic": SliceStatistic(Mean(name="mean"), {}),
        "binary": False,
        "concern": Concern(direction="increase", tolerance=tolerance),
    }
    return Sample(**(defaults | fields))


@pytest.mark.parametrize(
    ("effects", "errors", "outcome", "share"),
    [
        ((2.0, 0.0), (1.0, 0.0), "pass", 0.5),  # at the threshold
        ((2.0, 0.0), (1.01, 0.0), "fail", 0.505),
        ((2.0, 0.0), (0.0, 1.01), "fail", 0.505),  # of another stage than the leading one
        ((-4.0, 1.0), (1.5, 0.2), "pass", 0.375),  # the largest effect, whichever its sign
        ((0.0, 0.01), (0.04, 0.0), "pass", 0.4),  # held against the tolerance
        ((0.0, 0.01), (0.06, 0.0), "fail", 0.6),
        ((2.0, 1.0), (0.0, 0.0), "pass", 0.0),
    ],
)
def test_the_error_is_held_against_the_largest_effect(
    effects: tuple[float, float], errors: tuple[float, float], outcome: str, share: float
) -> None:
    found = Refinement([sample(effects, errors)], STAGES, Options()).run()
    assert (found.outcome, found.threshold) == (outcome, 0.5)
    assert found.statistic == pytest.approx(share)
    (line,) = found.details
    assert (line.behavior, line.outcome) == ("b", outcome)


def test_an_unknown_error_is_inconclusive_and_names_the_stage() -> None:
    known = sample((1.0, 1.0), (0.1, 0.1), behavior="known")
    unknown = sample((1.0, 1.0), (0.1, np.inf), behavior="unknown")
    found = Refinement([known, unknown], STAGES, Options()).run()
    assert (found.outcome, found.statistic) == ("inconclusive", 0.1)
    assert "unknown" in said(found.reasons)
    assert [d.outcome for d in found.details] == ["pass", "inconclusive"]
    assert "two" in said(found.details[1].notes)


def test_without_a_tolerance_an_error_beside_no_effect_fails() -> None:
    found = Refinement([sample((0.0, 0.0), (0.1, 0.0), tolerance=0.0)], STAGES, Options()).run()
    assert (found.outcome, found.statistic) == ("fail", None)
    nothing = Refinement([sample((0.0, 0.0), (0.0, 0.0), tolerance=0.0)], STAGES, Options()).run()
    assert nothing.outcome == "pass"
    assert "no effect states an error" in said(nothing.reasons)


def test_the_threshold_is_the_specs() -> None:
    one = sample((2.0, 0.0), (1.0, 0.0))
    assert Refinement([one], STAGES, Options(threshold=0.4)).run().outcome == "fail"
