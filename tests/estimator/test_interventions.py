"""Parties: their ids, their words."""

import pytest

from auditspec.estimator.interventions import (
    INITIAL,
    RECORDED,
    Arm,
    change_before,
    in_words,
    is_stage,
)


@pytest.mark.parametrize(
    ("party", "words"),
    [
        (INITIAL, "the initial weights"),
        (change_before("review"), "the change of the model before 'review'"),
        ("vendor", "stage 'vendor'"),
    ],
)
def test_readers_are_told_of_a_party_in_words(party: str, words: str) -> None:
    assert in_words(party) == words
    assert is_stage(party) == words.startswith("stage")


def test_an_arm_is_what_it_does_otherwise_so_far() -> None:
    stages = ("one", "two", "three")
    arm = Arm(frozenset({"one", "three"}), frozenset({"two", INITIAL}))
    assert arm.within(()) == Arm(replaced=frozenset({INITIAL}))
    assert arm.within(stages[:1]) == Arm(frozenset({"one"}), frozenset({INITIAL}))
    assert arm.within(stages) == arm
    assert arm.first(stages) == 0
    assert Arm.without("three", "two").first(stages) == 1
    assert Arm.without("three").within(stages[:2]) == RECORDED
    assert RECORDED.first(stages) == 3
    assert Arm.each(stages) == [Arm.without(stage) for stage in stages]
    assert Arm.of(arm.name) == arm


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (Arm.without("one"), "without stage 'one'"),
        (Arm.without("two", "one"), "without stage 'one' and stage 'two'"),
        (
            Arm(frozenset({"one"}), frozenset({INITIAL})),
            "without stage 'one' and with reference weights for the initial weights",
        ),
    ],
)
def test_readers_are_told_of_an_arm_in_words(arm: Arm, words: str) -> None:
    assert arm.words == words
