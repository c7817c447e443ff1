"""A script that trains with the self-check on: `python checked_training.py FOLDER [MODE]`.

Imported inside a self-check it can be made to hang (HANG=1), so that a test can end what checks, or to die (DIE=1).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import naive_loops
import torch
from training import build_mlp32

if os.environ.get("AUDITSPEC_INSIDE_SELF_CHECK"):
    if os.environ.get("HANG"):
        time.sleep(600)
    if os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)


def build() -> torch.nn.Module:
    return build_mlp32()


def slowly(loop: naive_loops.Loop) -> None:
    loop.make()
    if loop.step == 10:
        print("checking", flush=True)
    if loop.step >= 10:
        time.sleep(0.05)


if __name__ == "__main__":
    os.environ["AUDITSPEC_SELF_CHECK"] = "1"
    torch.set_num_threads(1)
    cases = naive_loops.CASES | naive_loops.COMPILED
    case = cases[sys.argv[2]] if len(sys.argv) > 2 else None
    case = case or naive_loops.Case(None, slowly, build=build, steps=2000)
    recorder = naive_loops.train(Path(sys.argv[1]), case)
    print(recorder.header.stages[0].self_check, flush=True)
