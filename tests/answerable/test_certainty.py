"""What may be said, by how often the rule ends where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import case, course

from auditspec.answerable.certainty import answer, tally
from auditspec.answerable.rule import Outcome
from auditspec.estimator.interventions import Arm

A, B, AB = frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"})
NOBODY = frozenset[str]()


def outcome(parties: frozenset[str], ending: str = "removed") -> Outcome:
    return Outcome(parties, ending)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("named", "tallies", "kind", "parties"),
    [
        (NOBODY, {(NOBODY, "within"): 95, (A, "removed"): 5}, "nobody", NOBODY),
        (NOBODY, {(NOBODY, "within"): 94, (A, "removed"): 6}, "open", NOBODY),
        (A, {(A, "removed"): 95, (NOBODY, "within"): 5}, "one", A),
        (A, {(A, "removed"): 95, (NOBODY, "unexplained"): 5}, "one", A),
        (A, {(A, "removed"): 94, (NOBODY, "unexplained"): 6}, "open", NOBODY),
        (A, {(A, "removed"): 94, (NOBODY, "within"): 6}, "open", NOBODY),
        (AB, {(AB, "removed"): 97, (A, "removed"): 3}, "several", AB),
        (AB, {(AB, "removed"): 60, (A, "removed"): 40}, "one", A),
        (AB, {(AB, "removed"): 40, (A, "removed"): 30, (B, "removed"): 30}, "one-or-more", AB),
        (AB, {(AB, "removed"): 40, (A, "removed"): 30, (NOBODY, "within"): 30}, "open", NOBODY),
        (A, {(A, "removed"): 50, (B, "removed"): 50}, "open", NOBODY),
    ],
)
def test_what_may_be_said(named, tallies, kind, parties) -> None:  # type: ignore[no-untyped-def]
    ending = "removed" if named else "within"
    found = answer(outcome(named, ending), tallies, 100, 0.95)
    assert (found.kind, found.parties) == (kind, parties)


def test_a_resample_whose_run_was_not_made_speaks_for_nothing() -> None:
    assert answer(outcome(A), {(A, "removed"): 94}, 100, 0.95).kind == "open"
    assert answer(outcome(A), {(A, "removed"): 95}, 100, 0.95).kind == "one"


def test_those_who_are_named_now_and_then_are_undetermined() -> None:
    found = answer(outcome(A), {(A, "removed"): 96, (AB, "removed"): 4}, 100, 0.95)
    assert (found.kind, found.undetermined) == ("one", NOBODY)
    found = answer(outcome(AB), {(A, "removed"): 60, (AB, "removed"): 40}, 100, 0.95)
    assert found.undetermined == B


@given(
    st.dictionaries(
        st.tuples(st.frozensets(st.sampled_from("abc"), min_size=1), st.just("removed")),
        st.integers(1, 50),
        min_size=1,
        max_size=5,
    )
)
def test_nobody_is_named_whom_the_rule_does_not_name_nearly_always(tallies) -> None:  # type: ignore[no-untyped-def]
    resamples = sum(tallies.values())
    named = max(tallies, key=lambda key: tallies[key])[0]
    found = answer(outcome(named), tallies, resamples, 0.95)
    if found.kind in ("one", "several"):
        held = sum(n for (parties, _), n in tallies.items() if found.parties <= parties)
        assert held >= 0.9 * resamples  # each of them in 95 %
        assert found.parties <= named


def test_missing_runs_are_counted_by_the_resamples_that_ask_for_them() -> None:
    """In every other resample the second stage shows a rise beside the first."""
    stages = ("one", "two")
    levels = np.array([0.5, 0.5, 0.5])
    recorded = course(
        {"initial": np.zeros(3), "one:end": levels, "two:end": np.array([0.5, 0.5, 0.9])},
        {"initial": 0.0},
    )
    without_one = course(
        {"initial": np.zeros(3), "two:end": np.array([0.0, 0.0, 0.4])}, {"initial": 0.0}
    )
    without_two = course({"initial": np.zeros(3), "one:end": levels}, {"initial": 0.0})
    found = tally(case(stages, recorded, {("one",): without_one, ("two",): without_two}))
    assert found.outcome.parties == {"one"}
    assert found.wanted == {Arm.without("one", "two"): 1}
    assert sum(found.tallies.values()) == 1
