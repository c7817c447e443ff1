"""placebo: effects among random draws, against a permutation of their own and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from said import said

from auditspec.checks.placebo import KEPT, LEVEL, Drawn, Placebo, adjusted, enough


def drawn(effect: float, draws: Any, **fields: Any) -> Drawn:
    defaults: dict[str, Any] = {"stage": "one", "behavior": "b", "matters": True}
    return Drawn(effect=effect, draws=np.asarray(draws, float), **(defaults | fields))


def test_p_counts_the_draws_that_reach_the_effect_and_the_effect_itself() -> None:
    draws = [1.0, -2.0, 3.0, -4.0]
    for effect, p in ((0.5, 1.0), (1.0, 1.0), (2.5, 3 / 5), (-4.0, 2 / 5), (9.0, 1 / 5)):
        assert adjusted([drawn(effect, draws)]) == [pytest.approx(p)]


def test_p_pays_for_every_effect() -> None:
    draws = np.arange(1.0, 100.0)
    one, two = adjusted([drawn(98.5, draws), drawn(0.0, draws)])
    assert (one, two) == (pytest.approx(2 * 2 / 100), 1.0)


def test_among_many_effects_of_chance_few_stand_out() -> None:
    """The adjusted p holds for all effects together: the family-wise error is the level."""
    generator = np.random.default_rng(1)
    false = 0
    for _ in range(400):
        family = [drawn(generator.normal(), generator.normal(size=enough(4))) for _ in range(4)]
        false += min(adjusted(family)) <= LEVEL
    assert 0.02 <= false / 400 <= 0.08


def test_an_effect_that_chance_matches_fails_and_is_named() -> None:
    generator = np.random.default_rng(2)
    clear = drawn(9.0, generator.normal(size=40))
    lost = drawn(0.5, generator.normal(size=40), stage="two", behavior="c")
    found = Placebo([clear, lost], {"b": 0.0}).run()
    assert (found.outcome, found.statistic, found.bars) == ("fail", 1, "nothing")
    assert "two on c" in said(found.reasons)
    assert [d.outcome for d in found.details] == ["pass", "fail", "pass"]
    assert found.details[0].draws == tuple(np.sort(clear.draws))
    assert Placebo([clear], {"b": 0.0}).run().outcome == "pass"


def test_an_effect_within_the_tolerance_need_not_stand_out() -> None:
    quiet = drawn(0.01, np.random.default_rng(3).normal(size=40), matters=False)
    found = Placebo([quiet], {}).run()
    assert (found.outcome, said(found.reasons)) == ("pass", "no effect is beyond the tolerance")


def test_the_empty_stage_must_have_no_effect() -> None:
    found = Placebo([drawn(9.0, np.ones(40))], {"b": 1e-9}).run()
    assert found.outcome == "fail"
    assert "not repeatable" in said(found.reasons)


@pytest.mark.parametrize(("draws", "outcome"), [(18, "inconclusive"), (19, "pass")])
def test_too_few_draws_show_nothing(draws: int, outcome: str) -> None:
    found = Placebo([drawn(99.0, np.linspace(-1, 1, draws))], {}).run()
    assert found.outcome == outcome


def test_draws_that_move_nothing_match_nothing() -> None:
    assert adjusted([drawn(1.0, np.zeros(40))]) == [pytest.approx(1 / 41)]
    assert adjusted([drawn(0.0, np.zeros(40))]) == [1.0]


@pytest.mark.parametrize("effects", [1, 3, 15, 24])
def test_enough_draws_are_just_enough(effects: int) -> None:
    least = enough(effects)
    assert effects / (1 + least) <= LEVEL < effects / least


def test_of_many_draws_the_result_keeps_a_hundred() -> None:
    draws = np.random.default_rng(4).normal(size=1001)
    kept = Placebo([drawn(9.0, draws)], {}).run().details[0].draws
    assert len(kept) == KEPT == 100
    assert (kept[0], kept[-1]) == (draws.min(), draws.max())
    assert list(kept) == sorted(kept)
