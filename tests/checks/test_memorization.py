"""Rows that were trained on beside rows that were held back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from said import said
from training import ROWS, Recorded, StagePlan, build_mlp32, load_batch, train

from auditspec.checks.memorization import Fit, MemorizationCheck, StageFit, _fits
from auditspec.results import CheckResult


class Few(StagePlan):
    """A stage that draws eight rows again and again, and lets the others be."""

    def ids(self, step: int) -> list[int]:
        return [(3 * i + 1 + self.shift) % ROWS for i in range(8)]


HARD = Few("tune", steps=16, options={"lr": 1.0})


def checked(recorded: Recorded, rows: int = 16) -> CheckResult:
    rng = np.random.default_rng(0)
    return MemorizationCheck([*_fits(recorded.rerun(), rows, rng)], 0).run()


def other_rows(dataset: Any, ids: Any) -> Any:
    """Of batches it gives other rows than are asked for, of single rows those."""
    rows = [(i + 17) % ROWS for i in ids] if len(list(ids)) > 1 else ids
    return load_batch(dataset, rows)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("honest"), (HARD,), build_mlp32)


def test_what_was_trained_on_is_fitted_better(honest: Recorded) -> None:
    found = checked(honest)
    assert found.outcome == "pass", said(found.reasons)
    assert (found.details[0].statistic or 0) > 0


def test_rows_of_which_others_were_loaded_are_not(tmp_path: Path) -> None:
    lie = train(tmp_path, (HARD,), build_mlp32, load=other_rows)
    found = checked(lie)
    assert found.outcome in ("inconclusive", "fail")


@pytest.mark.parametrize("shift", [2, 13])
def test_rows_that_the_record_exchanges_are_not(honest: Recorded, shift: int) -> None:
    """The record names rows that were never drawn, of which others may pass by chance."""
    stage = honest.trajectory.stages[0]
    steps = tuple(
        replace(
            s,
            batches=tuple(
                replace(b, ids=tuple((i + shift) % ROWS for i in b.ids)) for b in s.batches
            ),
        )
        for s in stage.steps
    )
    stage.__dict__["steps"], true = steps, stage.steps
    try:
        assert checked(honest).outcome in ("inconclusive", "fail")
    finally:
        stage.__dict__["steps"] = true


def test_ascent_fits_worse_and_is_meant_to(tmp_path: Path) -> None:
    options = {"lr": 0.3, "maximize": True}
    run = train(tmp_path, (replace(HARD, options=options),), build_mlp32)
    assert checked(run).outcome in ("pass", "inconclusive")


def test_a_stage_that_drew_every_row_has_nothing_to_compare(tmp_path: Path) -> None:
    every = (StagePlan("one", steps=12), Few("two", steps=4))
    found = checked(train(tmp_path, every, build_mlp32))
    two = found.details[1]
    assert two.outcome == "inconclusive"
    assert "no row of its data was held back" in said(two.notes)


def test_the_test_holds_its_level_and_has_the_power_that_it_states() -> None:
    rng = np.random.default_rng(1)
    trials, base = 60, rng.normal(size=(60, 2, 2, 16))

    def passed(shift: float) -> float:
        hits = 0
        for trial in base:
            fits = [Fit(trained + shift, held) for trained, held in trial]
            hits += StageFit("one", fits).p(np.random.default_rng(0))[0] <= 0.05
        return hits / trials

    stated = np.mean([StageFit("one", [Fit(*side) for side in trial]).detectable for trial in base])
    assert passed(0.0) <= 0.12  # of Bin(60, 0.05), but for 1 in 100
    assert 0.65 <= passed(float(stated)) <= 0.93


def test_rows_that_are_fitted_worse_fail() -> None:
    rng = np.random.default_rng(0)
    fit = Fit(rng.normal(size=16) - 3, rng.normal(size=16))
    found = MemorizationCheck([StageFit("one", [fit])], 0).run()
    assert (found.outcome, found.statistic, found.bars) == ("fail", 1, "nothing")
