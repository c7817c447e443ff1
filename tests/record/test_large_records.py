"""A record is opened, hashed, and read within memory for one state at most, however large it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from auditspec import Recorder
from auditspec.record.format import state_file

MIB = 2**20
READER = """\
import sys, threading, time
from pathlib import Path
import torch
from auditspec.artifacts.manifest import digest_path
from auditspec.record.trajectory import Trajectory

def memory(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) // 1024

most, running = 0, True
def watch():
    global most
    while running:
        most = max(most, memory("RssAnon"))
        time.sleep(0.005)

before = memory("RssAnon")
watcher = threading.Thread(target=watch)
watcher.start()
found = digest_path(Path(sys.argv[1]))
hashed = memory("VmHWM")
stage = Trajectory.open(Path(sys.argv[1]), found.digest).stages[0]
total = sum(float(stage.state(step).parameters["weight"].sum()) for step in stage.state_steps)
running = False
watcher.join()
print(found.size // 2**20, hashed - before, most - before, memory("VmHWM") - before, total)
"""


def build_model() -> nn.Module:
    return nn.Linear(2, 1, bias=False)


def objective(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).mean()


def large_record(folder: Path, states: int, mib: int) -> None:
    """A record whose states are sparse files of so many MiB: zeros, and a one at the end."""
    model = build_model()
    with Recorder(folder, model, every=1, factory=build_model, self_check=False) as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recorder.stage("only", optimizer, objective, steps=states - 1) as run:
            for _ in run.steps:
                optimizer.zero_grad()
                run.batch(tensors=torch.ones(1, 2))
                objective(model, torch.ones(1, 2)).backward()
                optimizer.step()
    header = json.loads((folder / "record.json").read_text())
    header["parameters"][0]["shape"] = [1, mib * MIB // 4]
    (folder / "record.json").write_text(json.dumps(header))
    (folder / "manifest.json").unlink()
    for step in range(states):
        enlarge(next(folder.glob(f"*/{state_file(step)}")), mib)


def enlarge(path: Path, mib: int) -> None:
    """A state's weight of two numbers becomes one of so many MiB, the last number of which is 1."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    weight = header["param/weight"]
    rest = {n: e for n, e in header.items() if n not in ("__metadata__", "param/weight")}
    tail, place = b"", mib * MIB
    for entry in sorted(rest.values(), key=lambda entry: entry["data_offsets"]):
        begin, finish = entry["data_offsets"]
        tail += data[end + begin : end + finish]
        entry["data_offsets"] = [place, place + finish - begin]
        place += finish - begin
    weight.update(data_offsets=[0, mib * MIB], shape=[1, mib * MIB // 4])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(mib * MIB - 4, 1)
        file.write(torch.tensor([1.0]).numpy().tobytes() + tail)


def read_in_its_own_process(folder: Path) -> tuple[int, int, int, int, float]:
    ran = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=True
    )
    size, hashed, private, peak, total = ran.stdout.split()
    return int(size), int(hashed), int(private), int(peak), float(total)


@pytest.mark.parametrize(
    ("states", "mib"), [(4, 128), pytest.param(10, 2048, marks=pytest.mark.slow)]
)
def test_a_record_is_read_within_the_memory_of_one_state(
    tmp_path: Path, states: int, mib: int
) -> None:
    """Private memory stays below 96 MiB, whatever the size of a state; with its mapped pages, below one state more."""
    large_record(tmp_path / "record", states, mib)
    size, hashed, private, peak, total = read_in_its_own_process(tmp_path / "record")
    print(f"{size} MiB: hashed {hashed}, private {private}, peak {peak} MiB")
    assert total == states
    assert size >= states * mib
    assert private < 96
    assert peak < hashed + mib + 96
