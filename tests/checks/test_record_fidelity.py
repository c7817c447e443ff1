"""Records that lie must fail, and the failure must name the place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from deployment import deployed_as
from said import said
from tampering import (
    change_header,
    change_option,
    change_steps,
    copy,
    renumber_state,
    reopened,
    rewrite_state,
    stage_folder,
)
from torch import Tensor, nn
from training import (
    Mlp,
    Recorded,
    StagePlan,
    build_buffered,
    build_dropped,
    build_mlp32,
    build_normed,
    build_tied,
    cross_entropy,
    train,
)

from auditspec import Dataset
from auditspec.artifacts.checkpoints import read_metadata, read_tensors, write_tensors
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.results import CheckResult
from auditspec.spec.checks import RecordFidelity as Options

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
PLAN = (
    StagePlan("one", options=MOMENTUM),
    StagePlan("two", options=MOMENTUM, shift=1, clip_norm=0.2),
    StagePlan("three", options=MOMENTUM, shift=2, carry=True),
)
WINDOWS = 9  # three stages of six steps, a state every two


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN)


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("dropped"), PLAN, build_dropped)


def deployed(recorded: Recorded) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in recorded.model.state_dict().items()}


def check(
    recorded: Recorded,
    checkpoint: Mapping[str, Tensor] | None = None,
    tolerance: float = 0.0,
    **options: Any,
) -> CheckResult:
    weights = deployed(recorded) if checkpoint is None else checkpoint
    return RecordFidelity(
        recorded.rerun(), deployed_as(weights, tolerance), Options(**options)
    ).run()


def failed(found: CheckResult) -> list[str]:
    return [detail.subject for detail in found.details if detail.outcome == "fail"]


# --- the truth ----------------------------------------------------------------------------------


def test_an_honest_record_passes_bit_for_bit(recorded: Recorded) -> None:
    found = check(recorded)
    assert (found.outcome, found.statistic, found.threshold) == ("pass", 0.0, 1e-9), said(
        found.reasons
    )
    assert found.gradients == 18
    windows = [d for d in found.details if re.fullmatch(r"\w+ \d+-\d+", d.subject)]
    assert len(windows) == WINDOWS
    assert "9 of 9 windows" in said(found.reasons)
    assert "missed" not in said(found.reasons)


@pytest.mark.parametrize("build", [build_dropped, build_normed, build_mlp32])
def test_honest_records_of_other_models_pass(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    plan = (StagePlan("one", optimizer="Adagrad", options={"lr": 0.05}), *PLAN[1:])
    found = check(train(tmp_path, plan, build))
    assert (found.outcome, found.statistic) == ("pass", 0.0), said(found.reasons)
    assert found.threshold == (1e-4 if build is build_mlp32 else 1e-9)


# --- lies about steps and states ----------------------------------------------------------------


def swap(recorded: Recorded) -> Recorded:
    folder = stage_folder(recorded, "two")
    early, late = folder / "state-000002.safetensors", folder / "state-000004.safetensors"
    early.rename(folder / "kept")
    late.rename(early)
    (folder / "kept").rename(late)
    return reopened(recorded)


def nudge(recorded: Recorded) -> Recorded:
    """One weight of one kept state, by one part in a million."""
    path = stage_folder(recorded, "two") / "state-000004.safetensors"
    tensors = read_tensors(path)
    tensors["param/one.weight"][0, 0] *= 1 + 1e-6
    write_tensors(path, tensors, read_metadata(path))
    return reopened(recorded)


def nudge_moments(recorded: Recorded) -> Recorded:
    path = stage_folder(recorded, "two") / "state-000002.safetensors"
    tensors = read_tensors(path)
    tensors["optim/one.weight/momentum_buffer"] *= 1.01
    write_tensors(path, tensors, read_metadata(path))
    return reopened(recorded)


def remove_step(recorded: Recorded) -> Recorded:
    """Step 3 of stage two never happened, and everything after it moves up."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = rows[:3] + rows[4:]
        return [row | {"step": i} for i, row in enumerate(left)]

    def shorten(header: dict[str, Any]) -> None:
        header["stages"][1]["steps"] = 5

    renumber_state(recorded.folder / "record", "two", 6, 5)
    change_steps(recorded, "two", change)
    return change_header(recorded, shorten)


def reorder(recorded: Recorded) -> Recorded:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[2]["batches"], rows[3]["batches"] = rows[3]["batches"], rows[2]["batches"]

    return change_steps(recorded, "two", change)


def other_row(recorded: Recorded) -> Recorded:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[5]["batches"][0]["ids"][0] = 47

    return change_steps(recorded, "two", change)


def other_weight(recorded: Recorded) -> Recorded:
    """In a stage that does not clip: clipping would hide the factor, and rightly."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["batches"][0]["weight"] = 0.99

    return change_steps(recorded, "one", change)


def other_clip(recorded: Recorded) -> Recorded:
    def change(header: dict[str, Any]) -> None:
        header["stages"][1]["clip_norm"] = 0.1

    return change_header(recorded, change)


@pytest.mark.parametrize(
    ("lie", "windows"),
    [
        (swap, ["two 0-2", "two 2-4", "two 4-6"]),
        (nudge, ["two 2-4", "two 4-6"]),
        (nudge_moments, ["two 0-2", "two 2-4"]),
        (remove_step, ["two 2-4", "two 4-5"]),
        (reorder, ["two 2-4"]),
        (other_row, ["two 4-6"]),
        (other_weight, ["one 0-2"]),
        (other_clip, ["two 0-2", "two 2-4", "two 4-6"]),
        (lambda r: change_option(r, "two", 3, lr=0.07), ["two 2-4"]),
        (lambda r: change_option(r, "two", 4, momentum=0.899), ["two 4-6"]),
        (lambda r: change_option(r, "two", 1, weight_decay=0.011), ["two 0-2"]),
        (lambda r: change_option(r, "two", 1, nesterov=True), ["two 0-2"]),
    ],
    ids=[
        "swapped states",
        "a weight",
        "a moment",
        "a step removed",
        "batches reordered",
        "another row",
        "microbatch weight",
        "clipping",
        "learning rate",
        "momentum",
        "weight decay",
        "nesterov",
    ],
)
def test_a_lie_fails_and_names_the_window(
    recorded: Recorded, tmp_path: Path, lie: Callable[[Recorded], Recorded], windows: list[str]
) -> None:
    found = check(lie(copy(recorded, tmp_path)))
    assert found.outcome == "fail"
    assert failed(found) == windows
    assert said(found.reasons).startswith(windows[0])


def test_another_random_state_fails(dropped: Recorded, tmp_path: Path) -> None:
    """Dropout drew other units than the record says."""

    def change(rows: list[dict[str, Any]]) -> None:
        states = [row["batches"][0]["rng_cpu"] for row in rows]
        assert states[3] is not None
        assert states[2] != states[3]
        rows[3]["batches"][0]["rng_cpu"] = states[2]

    assert check(dropped).outcome == "pass"
    found = check(change_steps(copy(dropped, tmp_path), "two", change))
    assert failed(found) == ["two 2-4"]


def test_a_random_state_left_out_fails(dropped: Recorded, tmp_path: Path) -> None:
    """The window begins wherever the process's own generator happens to be."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[2]["batches"][0]["rng_cpu"] = None

    torch.manual_seed(1234)
    assert failed(check(change_steps(copy(dropped, tmp_path), "two", change))) == ["two 2-4"]


# --- lies about data ----------------------------------------------------------------------------


def with_data(recorded: Recorded, folder: Path, change: Callable[[pd.DataFrame], None]) -> Recorded:
    frame = pd.read_parquet(recorded.folder / "data.parquet")
    altered = copy(recorded, folder)
    change(frame)
    frame.to_parquet(folder / "data.parquet")
    altered.datasets = {"data": Dataset.open(folder / "data.parquet")}
    return altered


def relabel(frame: pd.DataFrame) -> None:
    """Row 19 is used in step 2 of stage two (7 * 2 + 5), and nowhere else in that window."""
    frame.loc[19, "y"] = (frame.loc[19, "y"] + 1) % 3


def test_other_data_than_was_trained_on_fails_by_digest(recorded: Recorded, tmp_path: Path) -> None:
    """Even where no window would show it."""

    def unused(frame: pd.DataFrame) -> None:
        frame["never_read"] = 1

    for change in (relabel, unused):
        found = check(with_data(recorded, tmp_path / change.__name__, change))
        assert found.outcome == "fail"
        assert failed(found) == ["data set data"]
        assert "not the one that was trained on" in said(found.reasons)


def test_a_changed_row_behind_a_forged_digest_fails_in_its_windows(
    recorded: Recorded, tmp_path: Path
) -> None:
    altered = with_data(recorded, tmp_path, relabel)

    def forge(header: dict[str, Any]) -> None:
        for stage in header["stages"]:
            stage["datasets"]["data"] = altered.datasets["data"].digest

    forged = change_header(altered, forge)
    used = [
        f"{stage.id} {start}-{start + 2}"
        for stage in PLAN
        for start in (0, 2, 4)
        if any(19 in stage.ids(step) for step in (start, start + 1))
    ]
    assert failed(check(forged)) == used
    assert 0 < len(used) < WINDOWS


# --- lies about boundaries ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "claim"), [("two", "carry"), ("three", "reset"), ("three", "given")]
)
def test_a_false_boundary_fails(recorded: Recorded, tmp_path: Path, stage: str, claim: str) -> None:
    """Every window agrees with itself; only the counterfactual would start from another state."""

    def change(header: dict[str, Any]) -> None:
        (held,) = (s for s in header["stages"] if s["id"] == stage)
        assert held["boundary"] != claim
        held["boundary"] = claim

    found = check(change_header(copy(recorded, tmp_path), change))
    assert found.outcome == "fail"
    (subject,) = failed(found)
    assert subject.endswith(f"to {stage}")
    assert f"'{claim}'" in said(found.reasons)


def test_a_first_stage_that_began_with_hidden_state_fails(
    recorded: Recorded, tmp_path: Path
) -> None:
    """Moments from a stage that the record does not show."""
    altered = copy(recorded, tmp_path)
    path, donor = (
        stage_folder(altered, "one") / "state-000000.safetensors",
        stage_folder(altered, "one") / "state-000002.safetensors",
    )
    optimizer_state = {n: t for n, t in read_tensors(donor).items() if n.startswith("optim/")}
    assert optimizer_state
    write_tensors(path, read_tensors(path) | optimizer_state, read_metadata(path))
    found = check(reopened(altered))
    assert found.outcome == "fail"
    assert "start of one" in failed(found)


def test_a_seam_that_does_not_meet_fails(recorded: Recorded, tmp_path: Path) -> None:
    """Stage two of another run: every window is honest, the chain is not."""
    other = train(tmp_path / "other", PLAN, seed=1)
    altered = copy(recorded, tmp_path / "copy")
    for path in stage_folder(altered, "two").iterdir():
        path.unlink()
    for path in stage_folder(other, "two").iterdir():
        path.rename(stage_folder(altered, "two") / path.name)
    found = check(reopened(altered))
    assert failed(found) == ["one to two", "two to three"]
    assert "begins elsewhere" in said(found.reasons)


def test_integers_in_buffers_count(tmp_path: Path) -> None:
    """A lookup table in a buffer steers a model as weights do."""
    plan = tuple(StagePlan(s.id, shift=s.shift) for s in PLAN)
    recorded = train(tmp_path, plan, build_permuted)
    assert check(recorded).outcome == "pass"
    swapped = deployed(recorded)
    swapped["order"] = swapped["order"].flip(0)
    assert failed(check(recorded, swapped, tolerance=0.5)) == ["deployed checkpoint"]


# --- gaps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state-000000.safetensors", "state-000006.safetensors"])
def test_a_stage_without_its_ends_fails(recorded: Recorded, tmp_path: Path, name: str) -> None:
    altered = copy(recorded, tmp_path)
    (stage_folder(altered, "two") / name).unlink()
    found = check(reopened(altered))
    assert found.outcome == "fail"
    assert failed(found) == ["two"]
    assert "end to end" in said(found.reasons)


def test_a_state_left_out_in_the_middle_makes_a_longer_window(
    recorded: Recorded, tmp_path: Path
) -> None:
    altered = copy(recorded, tmp_path)
    (stage_folder(altered, "two") / "state-000002.safetensors").unlink()
    found = check(reopened(altered))
    assert found.outcome == "pass"
    assert "two 0-4" in [d.subject for d in found.details]


def test_a_stage_that_hides_its_last_steps_fails(recorded: Recorded, tmp_path: Path) -> None:
    """The header ends the last stage at step 4, the files go on to 6: a replay would run six."""

    def change(header: dict[str, Any]) -> None:
        header["stages"][2] |= {"steps": 4, "complete": False}

    altered = change_header(copy(recorded, tmp_path), change)
    found = check(altered, altered.trajectory.stages[-1].last.parameters)
    assert found.outcome == "fail"
    assert failed(found) == ["three"]


def test_an_interrupted_run_fails_rather_than_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, PLAN, stop_at=("three", 3))
    whole = train(tmp_path / "whole", PLAN)
    whole.folder = tmp_path
    found = check(reopened(whole))
    assert found.outcome == "fail"
    assert failed(found) == ["three"]


def test_damaged_states_fail_rather_than_raise(recorded: Recorded, tmp_path: Path) -> None:
    altered = copy(recorded, tmp_path)
    (stage_folder(altered, "two") / "state-000004.safetensors").write_bytes(b"damaged")
    found = check(reopened(altered))
    assert failed(found) == ["two 2-4", "two 4-6"]
    (stage_folder(altered, "three") / "state-000006.safetensors").write_bytes(b"damaged")
    assert failed(check(reopened(altered)))[0] == "deployed checkpoint"


def test_a_rate_that_is_no_number_fails(recorded: Recorded, tmp_path: Path) -> None:
    found = check(change_option(copy(recorded, tmp_path), "two", 3, lr=float("nan")))
    assert found.outcome == "fail"
    assert failed(found)[0].startswith("two")


def test_a_record_of_boundaries_is_inconclusive(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, every="boundaries")
    found = check(recorded)
    assert found.outcome == "inconclusive"
    assert "no steps" in said(found.reasons)
    assert found.statistic is None
    other = {n: t * 2 for n, t in deployed(recorded).items()}
    assert check(recorded, other).outcome == "fail"


# --- the deployed checkpoint --------------------------------------------------------------------


def test_another_runs_checkpoint_fails(recorded: Recorded, tmp_path: Path) -> None:
    other = train(tmp_path, PLAN, seed=1)
    found = check(recorded, deployed(other))
    assert failed(found) == ["deployed checkpoint"]
    assert re.search(r"not the record's last state.*deviates by", said(found.reasons))


def test_the_deployed_checkpoint_has_its_own_tolerance(recorded: Recorded) -> None:
    exact = deployed(recorded)
    norm = float(torch.cat([t.flatten() for t in exact.values()]).norm())
    moved = {n: t.clone() for n, t in exact.items()}
    moved["one.bias"][0] += 1e-3 * norm  # a relative deviation of 1e-3, by construction
    assert check(recorded, moved).outcome == "fail"
    assert check(recorded, moved, tolerance=0.9e-3).outcome == "fail"
    assert check(recorded, moved, tolerance=1.1e-3).outcome == "pass"
    (detail,) = (d for d in check(recorded, moved).details if d.subject == "deployed checkpoint")
    assert detail.statistic == pytest.approx(1e-3, rel=1e-9)


def test_a_cast_checkpoint_needs_a_tolerance(recorded: Recorded) -> None:
    half = {n: t.to(torch.bfloat16) for n, t in deployed(recorded).items()}
    assert check(recorded, half).outcome == "fail"
    assert check(recorded, half, tolerance=2**-8).outcome == "pass"


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan"])
def test_a_checkpoint_with_other_tensors_fails(recorded: Recorded, change: str) -> None:
    weights = deployed(recorded)
    match change:
        case "missing":
            del weights["two.bias"]
        case "extra":
            weights["three.bias"] = torch.zeros(1)
        case "shape":
            weights["two.bias"] = weights["two.bias"][None]
        case "nan":
            weights["two.bias"][0] = torch.nan
    assert failed(check(recorded, weights, tolerance=1e9)) == ["deployed checkpoint"]


# --- sampled windows and thresholds -------------------------------------------------------------


def test_sampled_windows_say_what_they_would_miss(recorded: Recorded, tmp_path: Path) -> None:
    """One altered window is seen exactly if it is drawn, as often as the stated probability says."""
    altered = reorder(copy(recorded, tmp_path))
    windows, draws = 3, 40
    seen = 0
    for _ in range(draws):
        found = check(altered, windows=windows)
        rerun = [d.subject for d in found.details if re.fullmatch(r"\w+ \d+-\d+", d.subject)]
        assert len(set(rerun)) == windows
        assert found.gradients == 2 * windows
        assert (found.outcome == "fail") == ("two 2-4" in rerun)
        if found.outcome == "pass":
            assert "3 of 9 windows" in said(found.reasons)
            assert "missed with probability 0.67" in said(found.reasons)
        seen += found.outcome == "fail"
    expected, spread = draws / 3, (draws * (1 / 3) * (2 / 3)) ** 0.5
    assert abs(seen - expected) < 4 * spread


def test_more_windows_than_there_are_is_all_of_them(recorded: Recorded) -> None:
    found = check(recorded, windows=1000)
    assert found.gradients == 18
    assert "missed" not in said(found.reasons)


def test_the_threshold_can_be_set(recorded: Recorded, tmp_path: Path) -> None:
    altered = nudge(copy(recorded, tmp_path))
    worst = check(altered).statistic
    assert worst is not None
    assert check(altered, threshold=worst).outcome == "pass"
    assert check(altered, threshold=worst * 0.99).outcome == "fail"


# --- a model of these tests ---------------------------------------------------------------------


class Permuted(Mlp):
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(np.array([2, 0, 3, 1])))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(x[:, self.order], token)


def build_permuted() -> nn.Module:
    return Permuted().double()


# --- consistent forgeries -----------------------------------------------------------------------


def test_forged_moments_with_consistent_later_states_fail(
    recorded: Recorded, tmp_path: Path
) -> None:
    """Momentum that no gradient made moves the weights anywhere, and every later window agrees."""
    forged = copy(recorded, tmp_path)
    stage = next(s for s in forged.trajectory.stages if s.id == "two")
    state = stage.state(2)
    for slots in state.optimizer_state.values():
        slots["momentum_buffer"] = torch.full_like(slots["momentum_buffer"], 3.0)
    rewrite_state(forged.folder / "record", "two", 2, state)
    for start, stop in ((2, 4), (4, 6)):
        state = forged.rerun().run(stage, state, start, stop)
        rewrite_state(forged.folder / "record", "two", stop, state)
    found = check(reopened(forged))
    assert found.outcome == "fail"
    assert "two 0-2" in failed(found)


def test_another_objective_fails_however_small_the_rate(tmp_path: Path) -> None:
    """Weights hardly move in such a stage, so that closeness to them alone proves nothing."""
    slow = StagePlan("two", options={"lr": 1e-5, "momentum": 0.0}, steps=40, shift=1)
    recorded = train(tmp_path, (StagePlan("one"), slow), build_mlp32, every=20)
    assert check(recorded).outcome == "pass"

    def opposite(model: nn.Module, batch: Any) -> Tensor:
        return -cross_entropy(model, batch)

    recorded.functions.objectives["two"] = opposite
    found = check(recorded)
    assert found.outcome == "fail"
    assert "of what the window moved" in said(found.reasons)
    assert found.statistic is not None
    assert found.statistic < 1e-4


def test_a_second_name_in_the_checkpoint_counts(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, build_tied)
    weights = dict(recorded.model.state_dict())
    assert check(recorded, weights).outcome == "pass"
    without = {n: t for n, t in weights.items() if n != "head.weight"}
    assert check(recorded, without).outcome == "pass"
    noise = weights | {"head.weight": torch.randn_like(weights["head.weight"])}
    assert failed(check(recorded, noise)) == ["deployed checkpoint"]


def test_a_buffer_that_no_checkpoint_holds_is_not_missed(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, build_buffered)
    assert "scale" not in recorded.model.state_dict()
    assert check(recorded, dict(recorded.model.state_dict())).outcome == "pass"
