"""batching: a metric that looks at its neighbours, and a model that attends to padding, are told."""

from __future__ import annotations

import pytest
from said import said

from auditspec.checks.batching import THRESHOLD, Batching, TwoBatchings


@pytest.mark.parametrize(
    ("apart", "scale", "outcome"),
    [(0.0, 0.0, "pass"), (0.0099, 1.0, "pass"), (0.011, 1.0, "fail"), (1e-9, 0.0, "fail")],
)
def test_the_change_is_held_against_the_scale(apart: float, scale: float, outcome: str) -> None:
    result = Batching([TwoBatchings("b", 16, apart, scale)], 32).run()
    assert result.outcome == outcome
    assert result.threshold == THRESHOLD
    assert not result.in_the_way
    if outcome == "fail":
        assert "padding or by the other examples" in said(result.reasons)
        assert "32 (estimator.batch_size)" in said(result.reasons)
