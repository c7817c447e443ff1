"""Evaluation rows that are training rows, whatever the files look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from auditspec import Dataset
from auditspec.artifacts.digest import digest_bytes
from auditspec.behaviors.bound import Slice
from auditspec.behaviors.overlap import Overlap, overlaps
from auditspec.record.matching import StageRows

FEATURES = ["a", "b", "c"]
TRAINED = 60
"""Rows of the training table; the evaluation table takes its odd ones among the first 40."""


def table(seed: int, rows: int) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    x = pd.DataFrame(draw.normal(size=(rows, 3)), columns=FEATURES)
    return x.assign(y=draw.integers(0, 3, rows))


TRAIN = table(0, TRAINED)
COPIED = TRAIN.iloc[1:40:2]
NEW = table(1, 30)
HOLDOUT = pd.concat([COPIED, NEW]).sample(frac=1, random_state=0).reset_index(drop=True)


def load_batch(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    frame = data.frame.rename(columns={"A": "a", "label": "y"}).iloc[list(ids)]
    return torch.tensor(frame[FEATURES].to_numpy("float32")), torch.tensor(frame["y"].to_numpy())


def fails(data: Dataset, ids: Sequence[int]) -> Any:
    raise ValueError("not these")


def dataset(name: str, frame: pd.DataFrame) -> Dataset:
    digest = digest_bytes(frame.to_csv().encode())
    return Dataset(name, Path(f"{name}.parquet"), digest).disguised(frame=frame)


def compared(
    holdout: pd.DataFrame,
    load: Any = load_batch,
    train: pd.DataFrame = TRAIN,
    used: Sequence[int] = range(TRAINED),
    label: str = "y",
) -> Overlap:
    data = {"train": dataset("train", train), "holdout": dataset("holdout", holdout)}
    every = np.arange(len(holdout))
    part: Any = Slice(None, data["holdout"], every, None)  # type: ignore[arg-type]
    stage = StageRows("one", ("train",), steps=[[("train", n) for n in used]])
    (found,) = overlaps({"b": part}, [stage], data, {"holdout": label, "train": None}, load)
    return found


def test_new_rows_are_new() -> None:
    assert compared(NEW) == Overlap("b", "one", 30, 0, 0, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t,
        lambda t: t[["y", "c", "a", "b"]],
        lambda t: t.astype({"a": "float32", "b": "float32", "y": "uint8"}),
        lambda t: t.assign(source="web"),
        lambda t: t.assign(number=range(len(t))),
    ],
    ids=["shuffled", "columns in another order", "narrow", "column more", "number"],
)
@pytest.mark.parametrize("load", [load_batch, fails], ids=["loaded", "columns"])
def test_copied_rows_are_found(change: Callable[[pd.DataFrame], pd.DataFrame], load: Any) -> None:
    assert compared(change(HOLDOUT), load) == Overlap("b", "one", 50, 20, 0, True)


def test_a_column_less_is_found_by_those_that_are_left() -> None:
    assert compared(HOLDOUT.drop(columns="b"), fails).same == 20


def test_rows_that_only_look_different_in_the_file_are_found_as_loaded() -> None:
    renamed = HOLDOUT.rename(columns={"a": "A", "y": "label"})
    numbered = renamed.assign(row=range(50))
    assert compared(numbered, train=TRAIN.assign(row=range(100, 160)), label="label").same == 20


@pytest.mark.parametrize("load", [load_batch, fails], ids=["loaded", "columns"])
def test_the_same_features_with_another_label_are_relabelled(load: Any) -> None:
    other = HOLDOUT.assign(y=(HOLDOUT["y"] + 1) % 3)
    found = compared(other, load)
    assert (found.same, found.relabelled) == (0, 20)


def test_only_rows_that_a_stage_used_count() -> None:
    assert compared(HOLDOUT, used=range(10)).same == 5


def test_the_training_file_itself_is_compared_by_number() -> None:
    train = TRAIN[["y"]]
    found = compared(train, fails, train, used=[3, 4, 50])
    assert (found.same, found.told) == (3, True)


def test_rows_that_repeat_too_often_are_not_told_apart() -> None:
    draw = np.random.default_rng(5)
    coarse = [pd.DataFrame({"a": draw.integers(0, 2, 80), "y": 0, "b": 0, "c": 1}) for _ in "ab"]
    found = compared(coarse[0], train=coarse[1])
    assert found == Overlap("b", "one", 80, 0, 0, False)
