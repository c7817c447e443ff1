"""What a stage may not do on the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import own_optimizers as own
import pytest
import torch
from torch import nn
from training import (
    SGD3,
    build_mlp,
    cross_entropy,
    load_batch,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.errors import RecordError


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


@pytest.mark.parametrize("every", [1, 50])
def test_freezing_inside_a_stage_is_refused(tmp_path: Path, every: int) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=r"frozen or freed inside the stage: two\.bias"),
        record(tmp_path, model, every=every) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=2) as run,
    ):
        for _ in run.steps:
            run.loss([0, 1]).backward()
            optimizer.step()
            model.two.bias.requires_grad_(False)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (own.Counting, "step 0: Counting keeps what it learns in made"),
        (own.Adapting, "step 0: Adapting keeps what it learns in lr"),
        (own.Global, "state under 'all', which is no parameter"),
        (own.Listed, "keeps a list as 'history' of parameter"),
    ],
)
def test_what_an_optimizer_hides_from_the_record_is_refused(
    tmp_path: Path, kind: Any, said: str
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = kind(model.parameters(), lr=0.1)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=said),
        record(tmp_path, model, every=1) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=2) as run,
    ):
        for _ in run.steps:
            run.loss([0, 1]).backward()
            optimizer.step()


def test_a_full_disk_is_told_before_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(RecordError, match="are free"):
        train(tmp_path, SGD3)
