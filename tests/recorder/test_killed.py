"""kill -9 during recorded training: what was written stays readable, and the run can go on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_training import PLAN
from training import Dataset, build_dropped, cross_entropy, load_batch, predict, train

from auditspec.artifacts.manifest import Manifest
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory

SCRIPT = Path(__file__).parents[1] / "support" / "killed_training.py"


@pytest.mark.slow
def test_ten_kills_lose_at_most_the_open_segment(tmp_path: Path) -> None:
    draw = random.Random(20)
    before, kills = 0, 0
    while kills < 10:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        time.sleep(draw.uniform(0.02, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        rest = process.stdout.read()
        process.stdout.close()
        kills += 1
        if (tmp_path / "record" / "record.json").exists():
            trajectory = Trajectory.open(tmp_path / "record")
            steps = sum(len(stage.steps) for stage in trajectory.stages)
            assert steps >= before  # whole segments are never lost again
            before = steps
        if "finished" in rest:
            break
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "finished" in done.stdout
    trajectory = Trajectory.open(tmp_path / "record")
    assert trajectory.header.complete
    folder = tmp_path / "record"
    listed = Manifest.decode((folder / "manifest.json").read_bytes())
    assert not listed.differences(Manifest.scan(folder).without("manifest.json"))
    functions = Functions(
        build_dropped, load_batch, dict.fromkeys((s.id for s in PLAN), cross_entropy), predict
    )
    torch.set_num_threads(1)
    rerun = Rerun(trajectory, functions, {"data": Dataset.open(tmp_path / "data.parquet")})
    for stage, start, stop in trajectory.windows():
        assert deviation(rerun.run(stage, stage.state(start), start, stop), stage.state(stop)) == 0
    whole = train(tmp_path / "whole", PLAN, build_dropped, every=10)
    last = whole.trajectory.stages[-1].last
    assert deviation(trajectory.stages[-1].last, last) == 0
    assert kills >= 3  # it really was killed on the way
