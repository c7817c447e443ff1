"""additivity: the sum of the effects beside the total change."""

from __future__ import annotations

import pytest
from said import said

from auditspec.checks.additivity import Account, Additivity
from auditspec.spec.checks import Additivity as Options


@pytest.mark.parametrize(
    ("total", "effects", "outcome", "share"),
    [
        (2.0, (1.5, 0.5), "pass", 0.0),
        (2.0, (2.0, 1.0), "pass", 0.5),
        (2.0, (2.0, 1.1), "fail", 0.55),
        (-2.0, (1.0, 1.0), "fail", 2.0),
        (1.0, (3.0, 2.0), "fail", 4.0),
        (0.0, (0.02, 0.02), "pass", 0.4),  # held against the tolerance
        (0.0, (0.0, 0.0), "pass", 0.0),
        (None, (1.0, 1.0), "inconclusive", None),
    ],
)
def test_the_interaction_share(
    total: float | None, effects: tuple[float, ...], outcome: str, share: float | None
) -> None:
    found = Additivity([Account("b", total, effects, 0.1)], Options()).run()
    assert (found.outcome, found.bars) == (outcome, "nothing")
    assert found.statistic == (None if share is None else pytest.approx(share))
    assert found.details[0].behavior == "b"
    assert found.details[0].reference == total


def test_a_share_of_nothing_is_not_known() -> None:
    found = Additivity([Account("b", 0.0, (1.0,), 0.0)], Options()).run()
    assert (found.outcome, found.statistic) == ("inconclusive", None)


def test_the_behaviours_that_do_not_add_up_are_named() -> None:
    accounts = [Account("good", 1.0, (1.0,), 0.1), Account("bad", 1.0, (3.0,), 0.1)]
    found = Additivity(accounts, Options()).run()
    assert (found.outcome, found.statistic) == ("fail", 2.0)
    assert "bad" in said(found.reasons)
    assert "good" not in said(found.reasons)
