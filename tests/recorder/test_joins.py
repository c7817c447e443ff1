"""A stage begins where the one before it ended, or is refused."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
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
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import RecordError
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


def test_an_optimizer_that_comes_with_state_keeps_it_in_every_counterfactual(
    tmp_path: Path,
) -> None:
    recorded = train(tmp_path, SGD3[:1])
    data, model = recorded.datasets["data"], recorded.model

    def made(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for n, p in enumerate(model.parameters()):
            optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 0.1 * (n + 1))
        return optimizer

    def trained(model: nn.Module, steps: Iterable[tuple[torch.optim.Optimizer, list[int]]]) -> None:
        for optimizer, ids in steps:
            optimizer.zero_grad()
            cross_entropy(model, load_batch(data, ids)).backward()
            optimizer.step()

    with record(tmp_path / "new", model) as recorder:
        for stage, ids in (("one", [0, 1, 2]), ("two", [3, 4])):
            used = made(model)
            with recorder.stage(stage, used, cross_entropy, dataset=data, steps=3) as run:
                for _ in run.steps:
                    used.zero_grad()
                    run.loss(ids).backward()
                    used.step()
    trajectory = Trajectory.open(tmp_path / "new" / "record")
    assert [stage.header.boundary for stage in trajectory.stages] == ["given", "given"]
    functions = Functions(build_mlp, load_batch, dict.fromkeys(("one", "two"), cross_entropy), None)
    engine = Rerun(trajectory, functions, {"data": data})
    one, two = trajectory.stages
    assert deviation(engine.run(one, one.first), one.last) == 0
    assert deviation(engine.run(two, engine.carry_over(1, one.last)), two.last) == 0
    without = engine.run(two, engine.carry_over(1, one.first))
    wanted = deepcopy(model)
    wanted.load_state_dict({**one.first.parameters, **one.first.buffers}, strict=False)
    optimizer = made(wanted)
    trained(wanted, [(optimizer, [3, 4])] * 3)
    for name, p in wanted.named_parameters():
        assert torch.equal(p, without.parameters[name]), name


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
