"""Training that a test kills: `python killed_training.py FOLDER`, started again until it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from training import StagePlan, build_dropped, train

PLAN = (
    StagePlan("one", steps=120, optimizer="AdamW", options={"lr": 0.01}),
    StagePlan("two", steps=130, shift=1),
    StagePlan("three", steps=60, shift=2, carry=True),
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    print("training", flush=True)
    original = torch.optim.SGD.step

    def slowly(*args: object, **options: object) -> object:
        time.sleep(0.002)  # so that a kill meets the middle of something
        return original(*args, **options)

    torch.optim.SGD.step = slowly  # type: ignore[method-assign,assignment]
    train(Path(sys.argv[1]), PLAN, build_dropped, every=10, resume=True)
    print("finished", flush=True)
