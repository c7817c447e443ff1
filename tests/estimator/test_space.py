"""What store and journal take at most is what is forecast; where notes are taken at every step, that is reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of, store_in
from torch import Tensor, nn
from training import CLASSES, Recorded, StagePlan, train

from auditspec.artifacts import files
from auditspec.estimator import cache
from auditspec.estimator.compute import with_twins
from auditspec.estimator.interface import Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.replay.replay import Replay
from auditspec.estimator.subbatch.subbatch import SubBatchReplay

STAGES = ("one", "two", "three", "four")
OFF = 0.1


class Wide(nn.Module):
    """So wide that the names of its tensors weigh nothing beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4000), nn.Linear(4000, CLASSES)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def build_wide() -> nn.Module:
    return Wide()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    plan = [
        StagePlan(stage, 12, "AdamW", {"lr": 0.0001}, shift=i) for i, stage in enumerate(STAGES)
    ]
    return train(tmp_path_factory.mktemp("run"), tuple(plan), build_wide)


@pytest.mark.parametrize(
    ("estimator", "budget"),
    [(Replay(batched=False), None), (SubBatchReplay(), 50), (PairedReplay(), 60)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_disk_holds_what_is_forecast(
    recorded: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    estimator: Estimator,
    budget: int | None,
) -> None:
    most = [0]

    def watched(path: Path, data: Iterable[bytes | memoryview], **options: Any) -> None:
        held, parts = sum(file.stat().st_size for file in path.parent.iterdir()), [*data]
        most[0] = max(most[0], held + sum(map(len, parts)))
        files.write_atomically(path, parts, **options)

    monkeypatch.setattr(cache, "write_atomically", watched)
    monkeypatch.setattr(cache.FileJournal.__init__, "__defaults__", (0.0,))  # a note at every step
    context = replace(context_of(recorded.rerun(), budget=budget), store=store_in(tmp_path))
    arms = Arm.each(STAGES[:-1])
    said = estimator.forecast(recorded.trajectory, arms, context)
    assert with_twins(estimator, context, arms).twins or budget is None
    assert most[0] == pytest.approx(said.disk, rel=OFF)
