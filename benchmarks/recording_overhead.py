"""What recording costs: the digits CNN trained with and without the recorder, in turn.

    python benchmarks/recording_overhead.py [--pairs 15] [--every 50] [--bar 1.10]

Both loops make the same steps on the same batches with the same torch.optim classes. Prints the
time of each and the ratio pair by pair. The bar is held against the ratio of the fastest runs: what
else a machine does can only slow a run down. Exits 1 above the bar.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from auditspec import Dataset, Recorder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "digits"))
import train as digits

LossOf = Callable[[list[int]], torch.Tensor]
Rows = Callable[[int], list[int]]


def run(folder: Path, record: Path | None, every: int) -> float:
    """Seconds that the five stages take."""
    torch.manual_seed(0)
    model = digits.build_model()
    data = {s.data: Dataset.open(folder / f"{s.data}.parquet") for s in digits.STAGES}
    for dataset in data.values():
        digits.load_batch(dataset, [0])  # reading the table is not training
    recorder = None
    began = time.perf_counter()
    if record is not None:
        recorder = Recorder(
            record,
            model,
            every=every,
            factory=digits.build_model,
            load_batch=digits.load_batch,
            self_check=False,  # a second process beside the training
        )
    for index, stage in enumerate(digits.STAGES):
        optimizer = stage.optimizer(model.parameters())
        dataset, largest = data[stage.data], optimizer.defaults["lr"]
        rows = partial(digits.batch_ids, 0, index, rows=len(dataset))

        def plain(ids: list[int], dataset: Dataset = dataset) -> torch.Tensor:
            return digits.cross_entropy(model, digits.load_batch(dataset, ids))

        if recorder is None:
            loop(optimizer, plain, rows, largest, range(stage.steps))
        else:
            with recorder.stage(
                stage.id, optimizer, digits.cross_entropy, dataset=dataset, steps=stage.steps
            ) as open_stage:
                loop(optimizer, open_stage.loss, rows, largest, open_stage.steps)
    if recorder is not None:
        recorder.finish()
    return time.perf_counter() - began


def loop(
    optimizer: torch.optim.Optimizer, loss_of: LossOf, rows: Rows, largest: float, steps: range
) -> None:
    """The loop of the example's train.py."""
    for step in steps:
        optimizer.param_groups[0]["lr"] = digits.cosine(largest, step, len(steps))
        loss = loss_of(rows(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--bar", type=float, default=1.10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        for name, frame in digits.make_data().items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
        run(folder, None, options.every)  # warm-up
        run(folder, folder / "warm", options.every)
        plain, recorded = [], []
        for pair in range(options.pairs):
            plain.append(run(folder, None, options.every))
            recorded.append(run(folder, folder / f"record-{pair}", options.every))
            print(
                f"plain {plain[-1]:.3f} s  recorded {recorded[-1]:.3f} s  "
                f"ratio {recorded[-1] / plain[-1]:.3f}"
            )
        size = sum(f.stat().st_size for f in (folder / "record-0").rglob("*") if f.is_file())
        middle = statistics.median(r / p for r, p in zip(recorded, plain, strict=True))
        ratio = min(recorded) / min(plain)
        print(
            f"fastest runs' ratio {ratio:.3f} (bar {options.bar:.2f}), "
            f"median ratio {middle:.3f}, record {size / 1e6:.2f} MB"
        )
        return int(ratio > options.bar)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
