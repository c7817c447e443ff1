"""A stage begins where the one before it ended, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def test_an_optimizer_with_foreign_state_and_changed_weights_are_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3[:1])
    model = recorded.model
    used = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cross_entropy(model, load_batch(recorded.datasets["data"], [0, 1])).backward()
    used.step()
    recorder = record(tmp_path / "new", model)
    with pytest.raises(RecordError, match="no recorded stage left"):  # noqa: SIM117
        with recorder.stage("one", used, cross_entropy, steps=1):
            pass


def test_weights_changed_between_stages_are_refused(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data, model = Dataset.open(tmp_path / "data.parquet"), build_mlp()
    recorder = record(tmp_path, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=1) as run:
        run.loss([0]).backward()
        optimizer.step()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RecordError, match="changed between the stages"):  # noqa: SIM117
        with recorder.stage("two", optimizer, cross_entropy, dataset=data, steps=1):
            pass
