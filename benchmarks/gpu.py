"""What a GPU makes of training, of replay, and of the estimators; on a machine without one it says so, and exits 0.

    python -m benchmarks.gpu [--device cuda] [--rows 32] [--steps 60]

A GPT is trained on the device with a recorder and without, and its record is replayed there. Then the small ladder: first-order
scores, paired replay, and batched replay against exact replay on one pipeline of digits. Prints what it measured, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.estimator.forecast import state_bytes
from auditspec.record.state import State, deviation
from auditspec.record.trajectory import Trajectory

from .ladder import compare
from .settings import SETTINGS
from .settings.gpt import CONTEXT, SYMBOLS, build_model, load_batch, objective

STAGE, RATE, WARM = "train", 1e-3, 5
SETTING = "digits-adamw-mlp"
LADDER = ("first-order", "paired-replay 1/4", "paired-replay 1/2", "replay, batched")


def rates(device: torch.device, size: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Steps a second of training, of recording, and of replay; how far replay lands from the record."""
    table = torch.randint(0, SYMBOLS, (size.rows * 8, CONTEXT + 1))
    columns = [f"c{place}" for place in range(CONTEXT + 1)]
    pd.DataFrame(table.numpy(), columns=columns).to_parquet(folder / "table.parquet")
    data = Dataset.open(folder / "table.parquet")
    peaks: dict[str, int] = {}
    for name, recorded in (("training", False), ("recording", True)):
        took = _timed(device, partial(_train, data, folder, device, size, recorded), peaks, name)  # fmt: skip
        yield f"{name}: {size.steps / took:.1f} steps a second"
    record = Trajectory.open(folder / "record")
    functions = Functions(build_model, load_batch, {STAGE: objective}, objective)
    rerun = Rerun(record, functions, {"table": data}, device=device)
    stage = record.stages[0]
    rerun.run(stage, stage.first, 0, WARM)
    reached: list[State] = []
    took = _timed(device, lambda: reached.append(rerun.run(stage, stage.first)), peaks, "replay")
    yield f"replay: {size.steps / took:.1f} steps a second"
    yield f"replay lands {deviation(reached.pop(), stage.last):.2g} from the recorded state"
    yield f"a state takes {sum(state_bytes(record)) / 1e6:,.0f} MB"
    yield from (f"{name}: {peak / 1e6:,.0f} MB on the device" for name, peak in peaks.items() if peak)  # fmt: skip


def _train(
    data: Dataset,
    folder: Path,
    device: torch.device,
    size: argparse.Namespace,
    recorded: bool,
) -> None:
    """One stage, as any loop makes it."""
    torch.manual_seed(0)
    model = build_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    recorder = (
        Recorder(
            folder / "record", model, every=size.steps, factory=build_model, load_batch=load_batch
        )
        if recorded
        else None
    )
    with recorder or nullcontext():
        stage: AbstractContextManager[Any] = (
            recorder.stage(STAGE, optimizer, objective=objective, dataset=data, steps=size.steps)
            if recorder
            else nullcontext()
        )
        with stage as run:
            for step in run.steps if run else range(size.steps):
                ids = [(step * size.rows + row) % len(data) for row in range(size.rows)]
                loss = run.loss(ids) if run else objective(model, load_batch(data, ids).to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def _timed(
    device: torch.device, compute: Callable[[], object], peaks: dict[str, int], name: str
) -> float:
    """Seconds, once the device is through; `peaks` is told of its memory."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    compute()
    if cuda:
        torch.cuda.synchronize(device)
        peaks[name] = torch.cuda.max_memory_allocated(device)
    return time.perf_counter() - began


def ladder(device: torch.device, folder: Path) -> Iterator[str]:
    """Errors and costs of the estimators on the device."""
    found = compare(SETTINGS[SETTING], 101, folder / "ladder", names=LADDER, device=str(device))
    yield f"{SETTING}: exact replay in {found['exact']['wall']:.1f} s"
    for name, row in found["estimators"].items():
        told = row.get("refused") or f"error {row['error']:.3f}, {row['wall_ratio']:.2f} of its time"  # fmt: skip
        yield f"{SETTING}: {name}: {told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    for name, default in (("rows", 32), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    if asked.device.type == "cuda" and not torch.cuda.is_available():
        print(f"nothing measured: torch {torch.__version__} finds no CUDA device here")
        return 0
    os.environ["AUDITSPEC_SELF_CHECK"] = "0"  # a second process would share the device
    name = torch.cuda.get_device_name(asked.device) if asked.device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for line in (*rates(asked.device, asked, Path(folder)), *ladder(asked.device, Path(folder))):  # fmt: skip
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
