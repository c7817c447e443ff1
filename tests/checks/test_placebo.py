"""placebo: effects among random draws, against a permutation of their own and closed forms."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from said import said

from auditspec.checks.placebo import ENOUGH, KEPT, LEVEL, Drawn, Placebo, adjusted


def drawn(effect: float, draws: Any, **fields: Any) -> Drawn:
    defaults: dict[str, Any] = {"stage": "one", "behavior": "b", "matters": True}
    return Drawn(effect=effect, draws=np.asarray(draws, float), **(defaults | fields))


def test_p_counts_the_draws_that_reach_the_effect_and_the_effect_itself() -> None:
    draws = [1.0, -2.0, 3.0, -4.0]
    for effect, p in ((0.5, 1.0), (1.0, 1.0), (2.5, 3 / 5), (-4.0, 2 / 5), (9.0, 1 / 5)):
        assert adjusted([drawn(effect, draws)]) == [pytest.approx(p)]


def test_p_is_the_rank_among_the_largest_of_every_round() -> None:
    """In units in which each effect and its draws have the same size: by a plain loop."""
    generator = np.random.default_rng(5)
    family = [drawn(e * s, s * generator.normal(size=40)) for e, s in ((2.2, 1.0), (0.1, 30.0))]
    units = [(d.effect**2 + sum(x**2 for x in d.draws)) ** 0.5 for d in family]
    for d, unit, p in zip(family, units, adjusted(family), strict=True):
        reached = sum(
            any(
                abs(e.draws[r]) / u >= abs(d.effect) / unit
                for e, u in zip(family, units, strict=True)
            )
            for r in range(40)
        )
        assert p == pytest.approx((1 + reached) / 41)


def test_another_effect_can_only_raise_p() -> None:
    generator = np.random.default_rng(6)
    one, two = (drawn(2.0, generator.normal(size=40)) for _ in range(2))
    assert adjusted([one, two])[0] >= adjusted([one])[0]


@pytest.mark.parametrize("heavy", [False, True])
def test_among_many_effects_of_chance_few_stand_out(heavy: bool) -> None:
    """The p holds for all effects together: the family-wise error is at most the level, of whatever sizes they are."""
    generator = np.random.default_rng(1)
    draw = partial(generator.standard_t, 3) if heavy else generator.normal
    false = 0
    for _ in range(1000):
        family = [drawn(s * draw(), s * draw(size=ENOUGH)) for s in (1.0, 1.0, 10.0, 0.01)]
        false += min(adjusted(family)) <= LEVEL
    assert false / 1000 <= 0.07  # four standard errors above the level
    assert heavy or false / 1000 >= 0.02


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


def test_enough_draws_are_just_enough() -> None:
    assert 1 / (1 + ENOUGH) <= LEVEL < 1 / ENOUGH


def test_of_many_draws_the_result_keeps_a_hundred() -> None:
    draws = np.random.default_rng(4).normal(size=1001)
    kept = Placebo([drawn(9.0, draws)], {}).run().details[0].draws
    assert len(kept) == KEPT == 100
    assert (kept[0], kept[-1]) == (draws.min(), draws.max())
    assert list(kept) == sorted(kept)
