"""Gradients that the check of the record stores: paired replay's numbers stay, its cost does not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import paired_replay
from torch import nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_routed,
    build_sparse,
    by_stage,
    train,
)

from auditspec.errors import UsageError
from auditspec.estimator import recorded_gradients as module
from auditspec.estimator.forecast import Pace
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget
from auditspec.estimator.plan import choose, prospects
from auditspec.estimator.recorded_gradients import (
    RecordedGradients,
    stored_bytes,
    temporarily_stored,
    worth_storing,
)

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
PLAN = (
    StagePlan("one", 8, options=MOMENTUM),
    StagePlan("two", 24, options=MOMENTUM, shift=1, clip_norm=0.3, microbatches=2),
    StagePlan("three", 24, "RMSprop", {"lr": 0.01}, shift=2, frozen=("one.bias",)),
    StagePlan("four", 24, options=MOMENTUM, shift=3, keep_gradients=True),
)
IDS = [stage.id for stage in PLAN]


def checked(recorded: Recorded, into: RecordedGradients) -> None:
    """Re-run every window, as the check of the record does."""
    rerun = recorded.rerun()
    for stage, start, stop in recorded.trajectory.windows():
        rerun.run(stage, stage.state(start), start, stop, into.put)


@pytest.mark.parametrize("every", [1, 6], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_routed])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_paired_replay_is_the_same_and_does_not_pay_again(
    tmp_path: Path, build: Callable[[], nn.Module], every: int, shift: float
) -> None:
    plan = PLAN if build is not build_routed else tuple(s for s in PLAN if not s.frozen)
    recorded = train(tmp_path, plan, build, every)
    trajectory, ids = recorded.trajectory, [stage.id for stage in plan]
    final, stages = trajectory.stages[-1].last, worth_storing(trajectory)
    free = every == 1
    assert stages == (
        {s.id for s in plan if s.optimizer == "RMSprop"} if free else {*ids} - {"one"}
    )
    passes = sum(len(s.steps) * (1 + (s.id == "two")) for s in trajectory.stages if s.id in stages)
    budget = smallest_budget(trajectory, Arm.each(ids)) + 9
    without, rerun = recorded.rerun(), recorded.rerun()
    expected = by_stage(paired_replay(without, final, Arm.each(ids), gradients=budget, shift=shift))
    with temporarily_stored(stages) as stored:
        checked(recorded, stored)
        options: Any = {"gradients": budget - passes, "shift": shift, "recorded": stored}
        found = by_stage(paired_replay(rerun, final, Arm.each(ids), **options))
    assert without.gradients - rerun.gradients == passes
    assert sum(c.gradients for c in found.values()) == pytest.approx(rerun.gradients)
    assert rerun.gradients <= budget - passes
    for stage, counterfactual in expected.items():
        ours, theirs = found[stage].state.parameters, counterfactual.state.parameters
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_sparse_gradients_come_back_sparse(tmp_path: Path) -> None:
    plan = tuple(
        StagePlan(name, 12, "SparseAdam", {"lr": 0.01}, shift=i)
        for i, name in enumerate(("one", "two"))
    )
    recorded = train(tmp_path, plan, build_sparse, every=4)
    stored = RecordedGradients(worth_storing(recorded.trajectory), BytesIO())
    checked(recorded, stored)
    (stage,) = recorded.trajectory.stages[1:]
    found = [signal for signal, _ in stored.signals(recorded.rerun(), stage, 5)]
    assert len(found) == 7
    assert all(signal.gradients["embed.weight"].is_sparse for signal in found)


def test_what_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normed = train(tmp_path / "normed", PLAN[:1] + PLAN[3:], build_normed, every=6).trajectory
    assert worth_storing(normed) == frozenset()  # a re-run does not show batch statistics
    plain = train(tmp_path / "plain", PLAN, build_mlp32, every=6).trajectory
    whole = stored_bytes(plain, worth_storing(plain))
    numbers = sum(p.numel() for p in build_mlp32().parameters())
    assert whole == 4 * 24 * (3 * numbers - 6)  # six biases are frozen in one of three stages
    monkeypatch.setattr(module, "LARGEST", whole - 1)
    assert worth_storing(plain) == frozenset()
    bare = train(tmp_path / "bare", PLAN, build_mlp32, every="boundaries").trajectory
    assert worth_storing(bare) == frozenset()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    class Full(BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    recorded = train(tmp_path, PLAN, build_mlp, every=6)
    with pytest.raises(UsageError, match="No space left on device") as error:
        checked(recorded, RecordedGradients(["two"], Full()))
    assert "TMPDIR" in error.value.remedy


def test_large_ones_go_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 100)
    recorded = train(tmp_path / "run", PLAN, build_mlp, every=6)
    with temporarily_stored(["two"], tmp_path / "cache") as stored, pytest.raises(UsageError):
        checked(recorded, stored)  # there is no such folder
    (tmp_path / "cache").mkdir()
    with temporarily_stored(["two"], tmp_path / "cache") as stored:
        checked(recorded, stored)
        stage = recorded.trajectory.stages[1]
        assert len(list(stored.signals(recorded.rerun(), stage))) == 24
    assert not list((tmp_path / "cache").iterdir())


def test_plan_and_forecast_count_what_is_stored(tmp_path: Path) -> None:
    trajectory = train(tmp_path, PLAN, build_mlp, every=6).trajectory
    stored, pace = RecordedGradients(worth_storing(trajectory)), Pace.recorded(trajectory)
    least = smallest_budget(trajectory, Arm.each(IDS[:-1]), stored)
    assert smallest_budget(trajectory, Arm.each(IDS[:-1])) > least
    budget = least + 20
    choices = choose(trajectory, "auto", Terms(budget=budget, recorded=stored))
    sampling = schedule(trajectory, Arm.each(IDS[:-1]), budget, recorded=stored)
    assert not sampling.observed
    assert sum(c.gradients for c in choices) == pytest.approx(sampling.gradients, abs=0.01)
    rows = {}
    for given in (RecordedGradients(), stored):
        terms = Terms(budget=budget, recorded=given)
        rows = {row.method: row for row in prospects(trajectory, terms, pace)}
        assert rows["paired-replay"].possible is (given is stored)
    paired, replayed = rows["paired-replay"].forecast, rows["replay"].forecast
    assert paired is not None
    assert replayed is not None
    assert paired.gradients == sampling.gradients
    assert paired.disk == replayed.disk + stored_bytes(trajectory, stored.stored)
