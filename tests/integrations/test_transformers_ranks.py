"""A Hugging Face Trainer under torchrun, recorded by its ranks and audited by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import hf_audit
import pytest
import torch

from auditspec.record.trajectory import Trajectory

STAGES = """
@trainer_objective
def base(model):
    return trainer(model, "clean", num_train_epochs=2)


@trainer_objective
def labels(model):
    return trainer(model, "vendor", per_device_train_batch_size=3, gradient_accumulation_steps=2)


@trainer_objective
def polish(model):
    return trainer(model, "clean", learning_rate=1e-3, average_tokens_across_devices=False)


STAGES = {"base": (base, "clean"), "labels": (labels, "vendor"), "polish": (polish, "clean")}
"""
SCRIPT = f"""
import torch
import {hf_audit.MODULE} as lab

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    runs = {{"recorded": lab.train(lab.HERE / "record").state_dict()}}
    runs |= {{without: lab.train(without=without).state_dict() for without in (None, *lab.STAGES)}}
    if torch.distributed.get_rank() == 0:
        torch.save(runs, lab.HERE / "runs.pt")
    torch.distributed.destroy_process_group()
"""


def on_two_ranks(folder: Path) -> None:
    """Run the script by torchrun; what it started ends with it, or with its time."""
    (folder / "on_ranks.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with (folder / "log").open("wb") as log:
        launcher = subprocess.Popen(
            [*command, "on_ranks.py"],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = launcher.wait(240)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert code == 0, (folder / "log").read_text()[-3000:]


@pytest.mark.slow
def test_a_trainer_under_torchrun_is_audited_by_one_process(tmp_path: Path) -> None:
    hf_audit.write(tmp_path, STAGES, rows=26)  # the last batch of an epoch is filled up
    on_two_ranks(tmp_path)
    runs = torch.load(tmp_path / "runs.pt")
    assert all(torch.equal(runs["recorded"][n], tensor) for n, tensor in runs[None].items())

    trajectory = Trajectory.open(tmp_path / "record")
    assert trajectory.header.layout.world_size == 2
    assert {s.header.self_check for s in trajectory.stages} == {None}
    first = [[b.rank for b in stage.steps[0].batches] for stage in trajectory.stages]
    assert first == [[0, 1], [0, 0, 1, 1], [0, 1]]
    assert set(hf_audit.windows(tmp_path)) == {0.0}

    names = {"base": "clean", "labels": "vendor", "polish": "clean"}
    spec = hf_audit.specify(tmp_path, runs["recorded"], names)
    result = hf_audit.small_audit.ran(spec)
    outcomes = {check.id: check.outcome for check in result.checks}
    assert (outcomes["record-fidelity"], outcomes["data-provenance"]) == ("pass", "pass")
    levels = {without: level(tmp_path, runs[without]) for without in (None, *names)}
    for effect in result.effects:
        exact = levels[None] - levels[effect.stage]
        assert effect.value == pytest.approx(exact, rel=1e-6, abs=1e-6)


def level(folder: Path, weights: dict[str, torch.Tensor]) -> float:
    """The behaviour's level: the answers' margin where the class is 0."""
    with hf_audit.code(folder) as lab:
        model = lab.build_model().eval()
        model.load_state_dict(weights)
        frame = lab.frame("holdout")
        chosen = [e for e, y in zip(lab.examples("holdout"), frame["y"], strict=True) if y == 0]
        with torch.no_grad():
            logits = lab.answers(model, lab.collate(chosen))
    return float((logits[:, 1] - logits[:, 0]).mean())
