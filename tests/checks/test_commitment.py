"""Stages against what was committed to: every part that differs is named, and so is what is not older."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from committed import Run, batches, opened, other, recorded
from said import said
from training import smoothed

from auditspec.artifacts.manifest import digest_path
from auditspec.checks.commitment import CommitmentCheck, StageAsMade
from auditspec.record.commitment import Commitment
from auditspec.record.plan import recorded_commitment
from auditspec.results import CheckResult
from auditspec.sign.sealing import Seal, SealedCommitment

CODE = digest_path(Path(__file__).parents[1] / "support" / "training.py").digest
NOON = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
BEFORE, AFTER = Seal(NOON), Seal(NOON + dt.timedelta(minutes=1))


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Commitment:
    commitment, _ = recorded(tmp_path_factory.mktemp("honest"), Run(), committing=True)
    assert commitment is not None
    return commitment


def checked(
    committed: Commitment,
    made: Commitment | None,
    seal: Seal | None = BEFORE,
    record: Seal | None = AFTER,
    seconds: float = 1.0,
) -> CheckResult:
    stage = StageAsMade("tune", SealedCommitment(committed, seal), made, seconds)
    return CommitmentCheck([stage], record).run()


def test_what_was_committed_to_is_what_the_record_amounts_to(
    committed: Commitment, tmp_path: Path
) -> None:
    _, record = recorded(tmp_path, Run())
    made = recorded_commitment(opened(record).stages[0], CODE)
    assert made == committed
    assert committed.seed == 0
    assert Commitment.decode(committed.encode(), "plan") == committed
    result = checked(committed, made)
    assert result.outcome == "pass"
    assert "60 s before the record was signed" in said(result.details[0].notes)


@pytest.mark.parametrize(
    ("lie", "fields"),
    [
        ({"batches": batches(1)}, {"order"}),
        ({"batches": batches()[::-1]}, {"order"}),
        ({"batches": batches()[:5]}, {"steps", "order"}),
        ({"lr": 0.1000001}, {"groups", "order"}),
        ({"rates": [0.1] * 5 + [0.09]}, {"order"}),
        ({"momentum": 0.8}, {"groups", "order"}),
        ({"optimizer": "AdamW"}, {"groups", "optimizer", "order"}),
        ({"clip_norm": 100.0}, {"clip_norm"}),
        ({"relabel": 3}, {"datasets"}),
        ({"seed": 1}, {"initial", "seed", "random"}),
        ({"poison": 1e-6}, {"initial"}),
        ({"draws": 1}, {"random"}),
        ({"objective": smoothed}, {"objective"}),
        ({"stage": "polish"}, {"stage"}),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_every_part_that_differs_is_named(
    committed: Commitment, tmp_path: Path, lie: dict, fields: set[str]
) -> None:
    _, record = recorded(tmp_path, other(**lie))
    made = recorded_commitment(opened(record).stages[0], CODE)
    result = checked(committed, made)
    assert result.outcome == "fail" and result.in_the_way
    assert set(committed.differing(made)) == fields
    for field in fields:
        assert field in said(result.reasons)


def test_other_code_is_named(committed: Commitment) -> None:
    made = committed.model_copy(update={"code": "sha256:" + "0" * 64})
    assert "in code" in said(checked(committed, made).reasons)


@pytest.mark.parametrize(
    ("seal", "record", "seconds", "outcome", "words"),
    [
        (AFTER, BEFORE, 1.0, "fail", "−60 s before the record"),
        (BEFORE, AFTER, 62.0, "fail", "took 62 s"),
        (BEFORE, AFTER, 61.0, "pass", "60 s before the record"),
        (None, AFTER, 1.0, "inconclusive", "no trainer's key"),
        (BEFORE, None, 1.0, "inconclusive", "no trainer's key"),
        (Seal(), AFTER, 1.0, "inconclusive", "which of them is older"),
        (Seal(entry=3), Seal(entry=4), 1.0, "pass", "entry 4 of the log"),
        (Seal(entry=4), Seal(entry=4), 1.0, "fail", "after the record"),
        (Seal(NOON, 5), Seal(AFTER.moment, 4), 1.0, "fail", "after the record"),
        (Seal(AFTER.moment, 3), Seal(NOON, 4), 1.0, "fail", "−60 s before"),
        (Seal(entry=3), AFTER, 1.0, "inconclusive", "which of them is older"),
    ],
)
def test_what_is_not_older_than_the_record_is_told(
    committed: Commitment,
    seal: Seal | None,
    record: Seal | None,
    seconds: float,
    outcome: str,
    words: str,
) -> None:
    result = checked(committed, committed, seal, record, seconds)
    assert result.outcome == outcome
    assert words in said(result.details[0].notes)


def test_a_stage_that_was_not_committed_to_beside_one_that_was(committed: Commitment) -> None:
    stages = [
        StageAsMade("tune", SealedCommitment(committed, BEFORE), committed, 1.0),
        StageAsMade("polish", None, None, 1.0),
    ]
    result = CommitmentCheck(stages, AFTER).run()
    assert [d.outcome for d in result.details] == ["pass", "inconclusive"]
    assert (result.outcome, result.in_the_way) == ("inconclusive", False)


def test_a_record_of_boundaries_has_nothing_to_compare(committed: Commitment) -> None:
    result = checked(committed, None)
    assert result.outcome == "inconclusive"
    assert "no steps" in said(result.reasons)
