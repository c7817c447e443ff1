"""Runs of several ranks: what is recorded, re-run by one process, against plain data-parallel training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from estimates import replay, replay_all
from parallel_rerun import logits, rerun_of
from parallel_training import EVERY
from plain_parallel import CASES, STAGES, STEPS, table
from ranks import on_ranks

from auditspec.estimator.interventions import Arm
from auditspec.record.format import SelfChecked
from auditspec.record.trajectory import Trajectory
from auditspec.recorder.windows import Window, land


def tried(folder: Path, world: int, cases: tuple[str, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    table().to_parquet(folder / "data.parquet")
    on_ranks("plain_parallel.py", world, folder, *cases)
    on_ranks("parallel_training.py", world, folder, *cases)
    return folder


def check(folder: Path, world: int, name: str) -> None:
    """The record holds bit for bit, and effects of its stages are those of plain training without them."""
    case = CASES[name]
    plain = torch.load(folder / name / "plain-0.pt")
    recorded = torch.load(folder / name / "recorded-0.pt")
    assert all(torch.equal(recorded[n], tensor) for n, tensor in plain[""].items())

    rerun = rerun_of(folder / name, case)
    layout = rerun.trajectory.header.layout
    assert (layout.world_size, layout.sharding) == (world, "replicated")
    for window in rerun.trajectory.windows():
        landing = land(rerun, Window(*window))
        assert landing.holds, landing.problem
        assert landing.deviation is not None
        assert landing.deviation.deviation == 0, window

    bound = 1e-10 if name.endswith("64") else 1e-6
    with_all = logits(case, recorded)
    for stage in STAGES:
        state = replay(rerun, rerun.trajectory.stages[-1].last, Arm.without(stage)).state
        effect = with_all - logits(case, {**state.parameters, **state.buffers})
        exact = with_all - logits(case, plain[stage])
        assert exact.norm() > 1e-3
        assert (effect - exact).norm() <= bound * exact.norm(), stage

    if name in ("mlp64", "normed"):  # arms at once, whose buffers go from rank to rank too
        final = rerun.trajectory.stages[-1].last
        arms = Arm.each(STAGES[:2])
        for arm, found in replay_all(rerun, final, arms, batched=True).items():
            for n, tensor in (found.state.parameters | found.state.buffers).items():
                assert torch.allclose(tensor, plain[arm.stage][n], rtol=10 * bound, atol=bound), n


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_records_of_several_ranks_are_rerun_by_one(tmp_path: Path, world: int) -> None:
    folder = tried(tmp_path, world, tuple(CASES))
    for name in CASES:
        check(folder, world, name)


def test_a_record_of_two_ranks_is_rerun_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A microbatch a rank and part, each with its share, its rows, and the random state of its rank."""
    monkeypatch.setenv("AUDITSPEC_SELF_CHECK", "1")
    folder = tried(tmp_path, 2, ("accumulated",))
    check(folder, 2, "accumulated")
    stage = Trajectory.open(folder / "accumulated" / "record").stages[0]
    assert stage.header.self_check == SelfChecked(outcome="bitwise", steps=STEPS, deviation=0.0)
    assert list(stage.state_steps) == [0, EVERY, 2 * EVERY, STEPS]
    for k, step in enumerate(stage.steps):
        rows = [list(CASES["accumulated"].steps("base", rank, 2))[k] for rank in range(2)]
        assert [(b.rank, list(b.ids)) for b in step.batches] == [
            (rank, part) for rank in range(2) for part in rows[rank]
        ]
        assert [b.weight for b in step.batches] == [0.25] * 4
        states = [b.rng["cpu"] for b in step.batches]
        assert len(set(states)) == 4
    assert [len(b.ids) for b in stage.steps[-1].batches] == [4, 4, 4, 3]


REFUSED = {
    "fine": r"nothing$",
    "again": r".* holds a record already \| choose another folder",
    "resumed": r".*a run on 2 processes cannot be resumed.*\| record it from its start",
    "outside": r"stage 's', step 0: a forward pass outside DistributedDataParallel, on 2 processes \| wrap",
    "rate": r"stage 's', step 0: rank 1 made it with other hyperparameters than rank 0 \| train with",
    "moved": r"stage 's', step 0: one\.bias is another on rank 1 than on rank 0 \| let",
    "hooked": r"stage 's', step 0: .*communication hook \(fp16_compress_hook\).* \| register no",
    "no-sync": r"stage 's', step 0: gradients were not averaged .*no_sync\(\) \| leave no_sync",
    "buffers": r"stage 's', step 1: norm\.running_mean is another .* \| .*broadcast_buffers",
    "synchronized": r"stage 's': norm is a SyncBatchNorm.* \| train with BatchNorm",
    "ignored": r"stage 's', step 0: DistributedDataParallel ignores one\.bias.* \| let it average",
    "join": r"stage 's', step 0: .*join\(\).* \| let every rank make the same number",
    "extended": r"nothing$",
    "committed": r"nothing$",
    "other-plan": r"stage 's', step 0: is not the step that was committed to \| train the planned",
    "few": r"stage 's', step 2: rank \d ended the stage of 3 steps \| let every rank",
}
"""What every rank is told of each loop of `parallel_refusals`: the place, and a remedy."""


@pytest.mark.slow
def test_what_no_rerun_could_make_is_refused_on_every_rank(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    for said in on_ranks("parallel_refusals.py", 2, tmp_path):
        lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
        for name, pattern in REFUSED.items():
            assert re.match(pattern, lines[name]), (name, lines[name])
