"""A script that trains whoever imports it: `python unguarded_training.py FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import naive_loops
import torch
from training import build_mlp32


def build() -> torch.nn.Module:
    return build_mlp32()


def train() -> None:
    folder = Path(os.environ["UNGUARDED"])
    with (folder / "times").open("a") as times:
        times.write("trained\n")
    case = naive_loops.Case(None, lambda loop: loop.make(), build=build)
    naive_loops.train(folder, case)


train()
