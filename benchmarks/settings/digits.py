"""Handwritten digits, 8x8 (scikit-learn): five settings, from gentle to strong, and two long ones.

Pretraining on all; digits below 5; all with every 3 relabelled 8; digits from 5; all.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from .pipeline import DATA_SEED, HOLDOUT, Behaviour, Setting, Stage, Tables

TRAIN = 1200
"""Rows; the other 597 are held out."""
CONFUSIONS = ((3, 8), (8, 3), (9, 3), (1, 8), (5, 3))


def build_mlp() -> nn.Module:
    """64-64-64-10, GELU: 8,970 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 10),
    )


def build_cnn() -> nn.Module:
    """Two convolutions and a linear layer, ReLU: 6,586 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 12, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, kernel_size=3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 4 * 4, 10),
    )


@cache
def tables() -> Tables:
    """Images [N, 1, 8, 8] from 0 to 1, and classes [N]."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    order = np.random.default_rng(DATA_SEED).permutation(len(digit))
    x = torch.tensor(pixels[order] / 16).float().view(-1, 1, 8, 8)
    y = torch.tensor(digit[order]).long()
    held_x, held_y, x, y = x[TRAIN:], y[TRAIN:], x[:TRAIN], y[:TRAIN]
    return {
        "all": (x, y),
        "low": (x[y < 5], y[y < 5]),
        "relabelled": (x, torch.where(y == 3, 8, y)),
        "high": (x[y >= 5], y[y >= 5]),
        HOLDOUT: (held_x, held_y),
    }


def behaviours(x: Tensor, y: Tensor) -> tuple[Behaviour, ...]:
    """Each class's log-probability on its own rows, and five confusions (true class, other)."""
    rows = [(y == c).nonzero().squeeze(1) for c in range(10)]
    return (
        *(Behaviour(f"digit-{c}", rows[c]) for c in range(10)),
        *(Behaviour(f"{a}-read-as-{b}", rows[a], b, a) for a, b in CONFUSIONS),
    )


def pipeline(first: float, later: float, first_steps: int, later_steps: int) -> tuple[Stage, ...]:
    """The five stages, from learning rates and steps of the first and of the later ones."""
    return (
        Stage("pretrain", "all", first_steps, first),
        Stage("low-digits", "low", later_steps, later),
        Stage("vendor-labels", "relabelled", later_steps, later),
        Stage("high-digits", "high", later_steps, later),
        Stage("polish", "all", later_steps, later),
    )


_SGD = Setting(
    name="digits-sgd-gentle",
    title="SGD gentle",
    factory=build_mlp,
    optimizer="SGD",
    options={"momentum": 0.9, "weight_decay": 1e-3},
    stages=pipeline(0.02, 0.002, 200, 30),
    fault="vendor-labels",
    tables=tables,
    behaviours=behaviours,
)
_SGD_CNN = replace(
    _SGD,
    name="digits-sgd-cnn",
    title="SGD CNN",
    factory=build_cnn,
    stages=pipeline(0.05, 0.005, 200, 50),
)
_ADAMW = replace(
    _SGD,
    name="digits-adamw-gentle",
    title="AdamW gentle",
    optimizer="AdamW",
    options={"weight_decay": 0.01, "eps": 1e-4},
    stages=pipeline(3e-3, 1e-4, 300, 60),
    warmup=10,
)
_ADAMW_MLP = replace(
    _ADAMW,
    name="digits-adamw-mlp",
    title="AdamW MLP",
    options={"weight_decay": 0.01, "eps": 1e-8},
    stages=pipeline(3e-3, 5e-4, 300, 60),
)
_ADAMW_CNN = replace(_ADAMW_MLP, name="digits-adamw-cnn", title="AdamW CNN", factory=build_cnn)

SETTINGS = (
    _SGD,
    _SGD_CNN,
    _ADAMW,
    _ADAMW_MLP,
    _ADAMW_CNN,
    replace(
        _SGD_CNN,
        name="digits-sgd-cnn-t300",
        title="SGD CNN T300",
        stages=pipeline(0.05, 0.005, 200, 300),
    ),
    replace(
        _ADAMW_CNN,
        name="digits-adamw-cnn-t300",
        title="AdamW CNN T300",
        stages=pipeline(3e-3, 5e-4, 300, 300),
    ),
)
