"""Parties: their ids, their words."""

import pytest

from auditspec.estimator.interventions import INITIAL, change_before, in_words, is_stage


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
