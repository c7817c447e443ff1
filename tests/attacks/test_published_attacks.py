"""The published attacks on training logs, really carried out: caught at the named check, or passed at a price.

Jia et al. 2021 (arXiv 2103.05633) sets the game; Zhang et al. 2022 (2108.09454) and Fang et al. 2023 (2208.03567) play it.
docs/security.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deployment import deployed_as
from forgers import (
    Forged,
    adversarial_step,
    deployed,
    greedy_rows,
    honest_gradients,
    interpolated,
    inverted,
    retrained,
    short_fine_tune,
)
from said import said
from tampering import change_header, change_option, change_steps, copy, rewrite_state
from training import ROWS, Recorded, StagePlan, build_mlp32, cross_entropy, load_batch, train

from auditspec.checks.memorization import MemorizationCheck, _fits
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.forgery import gradients_at_even_odds, price_of
from auditspec.messages import Message
from auditspec.record.plan import recorded_commitment
from auditspec.results import CheckResult
from auditspec.spec.checks import RecordFidelity as Options

PLAN = (StagePlan("tune", steps=8),)


class Few(StagePlan):
    """A stage that draws eight rows again and again, and lets the others be."""

    def ids(self, step: int) -> list[int]:
        return [(3 * i + 1) % ROWS for i in range(8)]


HARD = Few("tune", steps=16, options={"lr": 1.0})
PLAIN = replace(PLAN[0], options={"lr": 0.1})
"""Without momentum, so that a step can be inverted; nothing but the weights shows what it did."""
CODE = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN, build_mlp32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("plain"), (PLAIN,), build_mlp32)


def fidelity(
    false: Recorded, options: Options | None = None, weights: dict[str, torch.Tensor] | None = None
) -> CheckResult:
    given = deployed_as(deployed(false) if weights is None else weights)
    return RecordFidelity(false.rerun(), given, options or Options()).run()


def price(false: Recorded, found: CheckResult) -> Message | None:
    """What the report would say, of a beginning and a commitment that nothing confirms."""
    open_ = [
        found.model_copy(update={"id": name, "outcome": "not-run", "details": ()})
        for name in ("initial-weights", "commitment")
    ]
    return price_of(false.trajectory, [found, *open_])


def test_the_honest_record_passes_and_a_lie_costs_a_training(recorded: Recorded) -> None:
    found = fidelity(recorded)
    assert found.outcome == "pass"
    told = price(recorded, found)
    assert told is not None
    assert (told.values["trainings"], told.values["gradients"]) == (1.0, honest_gradients(recorded))


# --- checkpoints that no step made ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"noise": 1e-3}, {"noise": 1e-7}, {"only": (4,)}],
    ids=["all", "noisy", "barely-noisy", "one"],
)
def test_interpolated_checkpoints_fail(recorded: Recorded, tmp_path: Path, options: dict) -> None:
    lie = interpolated(recorded, tmp_path, **options)
    found = fidelity(lie.recorded)
    assert (lie.gradients, found.outcome) == (0, "fail")
    assert price(lie.recorded, found) is None


@pytest.mark.parametrize("rate", [1e-4, 1e-5])
def test_small_steps_hide_no_interpolation(tmp_path: Path, rate: float) -> None:
    """Infinitesimal updates: with a rate so small that all checkpoints lie within any tolerance of all others."""
    slow = train(tmp_path / "slow", (replace(PLAIN, options={"lr": rate}),), build_mlp32)
    lie = interpolated(slow, tmp_path / "false", noise=1e-6)
    assert fidelity(lie.recorded).outcome == "fail"


def test_steps_below_rounding_can_be_made_up_and_cost_nothing(tmp_path: Path) -> None:
    slow = train(tmp_path / "slow", (replace(PLAIN, options={"lr": 1e-7}),), build_mlp32)
    lie = interpolated(slow, tmp_path / "false", noise=1e-8)
    found = fidelity(lie.recorded)
    assert found.outcome == "pass"
    told = price(lie.recorded, found)
    assert told is not None and told.values["trainings"] < 0.5
    assert "within rounding only" in said(told)


def test_moments_show_that_no_step_was_made(tmp_path: Path) -> None:
    slow = train(
        tmp_path / "slow", (replace(PLAN[0], options={"lr": 1e-7, "momentum": 0.9}),), build_mlp32
    )
    lie = interpolated(slow, tmp_path / "false", noise=1e-8)
    assert fidelity(lie.recorded).outcome == "fail"


# --- a short training for a long one --------------------------------------------------------------


def test_a_short_fine_tune_does_not_end_in_the_model_that_is_deployed(
    recorded: Recorded, tmp_path: Path
) -> None:
    lie = short_fine_tune(recorded, tmp_path, steps=4)
    found = fidelity(lie.recorded, weights=deployed(recorded))
    assert "deployed checkpoint" in said(found.reasons)


def test_a_short_fine_tune_that_is_deployed_begins_elsewhere_than_was_committed_to(
    recorded: Recorded, tmp_path: Path
) -> None:
    """It passes the re-run, at the price of its own steps: half of the training that it takes the place of."""
    lie = short_fine_tune(recorded, tmp_path, steps=4)
    found = fidelity(lie.recorded)
    assert found.outcome == "pass"
    assert lie.gradients / honest_gradients(recorded) == 0.5
    told = price(lie.recorded, found)
    assert told is not None and told.values["gradients"] == lie.gradients
    assert "training before its first state costs nothing" in said(told)
    begun = recorded_commitment(recorded.trajectory.stages[0], CODE)
    made = recorded_commitment(lie.recorded.trajectory.stages[0], CODE)
    assert {"initial", "steps", "order"} <= set(begun.differing(made))


# --- adversarial steps, inverse gradients ---------------------------------------------------------


@pytest.mark.parametrize("forge", [adversarial_step, greedy_rows])
def test_steps_that_are_made_to_lead_somewhere_do_not_land(
    plain: Recorded, tmp_path: Path, forge: Callable[..., Forged]
) -> None:
    lie = forge(plain, tmp_path)
    found = fidelity(lie.recorded)
    assert lie.trainings > 1
    assert found.outcome == "fail"
    assert "tune 0-2" in said(found.reasons)


def test_gradients_that_are_not_inverted_do_not_land(plain: Recorded, tmp_path: Path) -> None:
    lie = inverted(plain, tmp_path, rounds=1)
    assert (lie.trainings, fidelity(lie.recorded).outcome) == (1.0, "fail")


@pytest.mark.parametrize("rounds", [3, 10])
def test_inverted_gradients_cost_several_trainings_and_begin_elsewhere(
    plain: Recorded, tmp_path: Path, rounds: int
) -> None:
    """A false past of a given model: to rounding, not bitwise, and so from no beginning that was drawn."""
    lie = inverted(plain, tmp_path, rounds)
    found = fidelity(lie.recorded)
    windows = [d for d in found.details if d.subject.startswith("tune ")]
    assert max(d.statistic or 0 for d in windows) < 1e-4
    assert sum(bool(d.statistic) for d in windows) >= 2
    assert found.outcome == "pass"
    told = price(lie.recorded, found)
    assert told is not None and told.values["trainings"] == 1.0 < lie.trainings == rounds
    assert "within rounding only" in said(told)
    begun = recorded_commitment(plain.trajectory.stages[0], CODE)
    made = recorded_commitment(lie.recorded.trajectory.stages[0], CODE)
    assert {"initial", "order"} <= set(begun.differing(made))


# --- data, order, hyperparameters -----------------------------------------------------------------


def swap(rows: list) -> None:
    rows[2]["batches"], rows[5]["batches"] = rows[5]["batches"], rows[2]["batches"]


def add_row(rows: list) -> None:
    rows[3]["batches"][0]["ids"].append(47)


def remove_row(rows: list) -> None:
    rows[3]["batches"][0]["ids"].pop()


def exchange_row(rows: list) -> None:
    ids = rows[3]["batches"][0]["ids"]
    ids[0] = (ids[0] + 1) % ROWS


def halve_weight(rows: list) -> None:
    rows[3]["batches"][0]["weight"] = 0.5


@pytest.mark.parametrize("change", [swap, add_row, remove_row, exchange_row, halve_weight])
def test_data_that_was_added_removed_or_reordered_fails(
    recorded: Recorded, tmp_path: Path, change: Callable[[list], None]
) -> None:
    lie = change_steps(copy(recorded, tmp_path), "tune", change)
    assert fidelity(lie).outcome == "fail"


@pytest.mark.parametrize(
    "options", [{"lr": 0.101}, {"weight_decay": 1e-4}, {"momentum": 0.1}, {"maximize": True}]
)
def test_a_lie_about_hyperparameters_fails(
    recorded: Recorded, tmp_path: Path, options: dict
) -> None:
    lie = change_option(copy(recorded, tmp_path), "tune", 3, **options)
    assert fidelity(lie).outcome == "fail"


def test_clipping_that_was_not_made_fails(recorded: Recorded, tmp_path: Path) -> None:
    def clip(header: dict) -> None:
        header["stages"][0]["clip_norm"] = 0.01

    assert fidelity(change_header(copy(recorded, tmp_path), clip)).outcome == "fail"


# --- what passes, at its price --------------------------------------------------------------------


def test_another_run_that_is_really_made_passes_at_the_stated_price(
    recorded: Recorded, tmp_path: Path
) -> None:
    lie = retrained(recorded, tmp_path)
    found = fidelity(lie.recorded)
    assert found.outcome == "pass"
    told = price(lie.recorded, found)
    assert told is not None
    assert told.values["trainings"] == lie.trainings == 1.0
    assert "could be made at any time" in said(told)
    committed = recorded_commitment(recorded.trajectory.stages[0], CODE)
    made = recorded_commitment(lie.recorded.trajectory.stages[0], CODE)
    assert committed.differing(made) == ("order",)


@pytest.mark.parametrize(("rerun", "true"), [(1, 4), (2, 6)])
def test_false_windows_pass_a_sample_as_often_as_the_price_says(
    recorded: Recorded, tmp_path: Path, rerun: int, true: int
) -> None:
    """Of four windows as many are false as keep the odds even; the others are really made."""
    lie = retrained(recorded, tmp_path, stop=true)
    assert lie.gradients == true == gradients_at_even_odds((2, 2, 2, 2), rerun)
    assert fidelity(lie.recorded).outcome == "fail"
    passed = [fidelity(lie.recorded, Options(windows=rerun)) for _ in range(40)]
    passed = [found for found in passed if found.outcome == "pass"]
    assert 8 <= len(passed) <= 32  # of Bin(40, 1/2), but for 1 in 10,000
    told = price(lie.recorded, passed[0])
    assert told is not None
    assert told.values["trainings"] == lie.trainings == true / 8
    assert f"{rerun} of 4 windows" in said(told)


@pytest.mark.parametrize(
    ("costs", "rerun", "true"),
    [((1, 1, 1), 3, 3), ((1, 1, 1), 0, 0), ((5, 1, 1, 1), 1, 2), ((1,) * 12, 3, 10), ((), 0, 0)],
)
def test_the_dearest_windows_are_the_false_ones(
    costs: tuple[int, ...], rerun: int, true: int
) -> None:
    assert gradients_at_even_odds(costs, rerun) == true


# --- a beginning that is none, and code that is not the same twice --------------------------------


def test_a_poisoned_beginning_is_not_the_one_that_was_committed_to(
    recorded: Recorded, tmp_path: Path
) -> None:
    begun = recorded_commitment(recorded.trajectory.stages[0], CODE)
    false = copy(recorded, tmp_path)
    first = false.trajectory.stages[0].first
    for size in (1e-7, 1e-3):
        planted = {n: p + size for n, p in first.parameters.items()}
        rewrite_state(false.folder / "record", "tune", 0, replace(first, parameters=planted))
        made = recorded_commitment(false.trajectory.stages[0], CODE)
        assert begun.differing(made) == ("initial",)


def hiding(dataset: object, ids: list[int]) -> tuple:
    """Of batches it gives other rows than are asked for, of single rows those."""
    return load_batch(dataset, [(i + 17) % ROWS for i in ids] if len(ids) > 1 else ids)


def test_a_loader_that_gives_others_rows_in_batches(tmp_path: Path) -> None:
    """It replays bit for bit; the rows that it is said to have trained on were not memorized."""

    def told(folder: str, load: Callable[..., tuple]) -> str:
        run = train(tmp_path / folder, (HARD,), build_mlp32, load=load)
        assert fidelity(run).outcome == "pass"
        fits = [*_fits(run.rerun(), 16, np.random.default_rng(0))]
        return MemorizationCheck(fits, 0).run().outcome

    assert told("honest", load_batch) == "pass"
    assert told("hiding", hiding) in ("inconclusive", "fail")


class Counting:
    """What remembers how often it was called: the stage and time at which it is."""

    calls = 0


def switching_loss(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
    Counting.calls += 1
    return cross_entropy(model, batch) * (1.0 if Counting.calls <= 8 else 0.9)


def switching_load(dataset: object, ids: list[int]) -> tuple:
    Counting.calls += 1
    x, token, y = load_batch(dataset, ids)
    return x, token, y if Counting.calls <= 8 else (y + 1) % 3


@pytest.mark.parametrize(
    "code", [{"objective": switching_loss}, {"load": switching_load}], ids=["loss", "loader"]
)
def test_code_that_behaves_by_time_does_not_land_again(tmp_path: Path, code: dict) -> None:
    Counting.calls = 0
    run = train(tmp_path, PLAN, build_mlp32, **code)
    assert fidelity(run).outcome == "fail"
