"""A plain PyTorch loop, heard by hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training import (
    SGD3,
    StagePlan,
    build_dropped,
    build_mlp,
    cross_entropy,
    load_batch,
    parameters,
    retrain,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import RecordError
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, steps=7, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, steps=5),
    StagePlan("three", split=True, shift=2, carry=True, steps=60),
)


def test_recording_does_not_change_the_training(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED, build_dropped)
    plain = retrain(recorded, None)
    assert all(torch.equal(p, parameters(recorded.model)[n]) for n, p in parameters(plain).items())


def test_the_loss_is_that_of_the_whole_step(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one", microbatches=4),))
    data = recorded.datasets["data"]
    torch.manual_seed(0)
    model = build_mlp()
    wanted = cross_entropy(model, load_batch(data, recorded.plan[0].ids(0)))
    assert recorded.trajectory.stages[0].steps[0].loss == pytest.approx(wanted.item(), rel=1e-12)


def test_random_states_are_kept_only_where_numbers_were_drawn(tmp_path: Path) -> None:
    drawn = train(tmp_path / "a", SGD3, build_dropped).trajectory.stages[0].steps
    quiet = train(tmp_path / "b", SGD3, build_mlp).trajectory.stages[0].steps
    assert all(len(s.batches[0].rng["cpu"]) == torch.get_rng_state().numel() for s in drawn)
    assert all(not s.batches[0].rng for s in quiet)


def noise_on_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad += 0.1 * torch.randn_like(p)
    optimizer.step()


def shuffling_afterwards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    torch.randperm(7)


@pytest.mark.parametrize(
    ("update", "kept"), [(noise_on_gradients, True), (shuffling_afterwards, False)]
)
def test_a_random_state_is_kept_for_what_is_drawn_up_to_the_steps_end(
    tmp_path: Path, update: Callable[..., None], kept: bool
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data, model = Dataset.open(tmp_path / "data.parquet"), build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Recorder(tmp_path / "r", model, factory=build_mlp, load_batch=load_batch) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=3) as run,
    ):
        for step in run.steps:
            optimizer.zero_grad()
            run.loss([step, step + 1]).backward()
            update(model, optimizer)
    steps = Trajectory.open(tmp_path / "r").stages[0].steps
    assert [bool(s.batches[0].rng) for s in steps] == [kept] * 3


def test_batches_can_be_recorded_as_tensors(tmp_path: Path) -> None:
    data = table()
    x = torch.tensor(data[["x0", "x1", "x2", "x3"]].to_numpy())
    y = torch.tensor(data["y"].to_numpy())
    token = torch.tensor(data["token"].to_numpy())
    torch.manual_seed(0)
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "record", model, every=2, factory=build_mlp) as recorder:  # noqa: SIM117
        with recorder.stage("only", optimizer, cross_entropy, steps=5) as run:
            for step in run.steps:
                batch = tuple(t[step : step + 8] for t in (x, token, y))
                run.batch(tensors=batch)
                optimizer.zero_grad()
                cross_entropy(model, batch).backward()
                optimizer.step()
    trajectory = Trajectory.open(tmp_path / "record")
    functions = Functions(build_mlp, load_batch, {"only": cross_entropy}, lambda m, b: m(*b[:2]))
    stage = trajectory.stages[0]
    assert torch.equal(stage.steps[3].batches[0].tensors[0], x[3:11])
    reached = Rerun(trajectory, functions, {}).run(stage, stage.first)
    assert deviation(reached, stage.last) < 1e-15  # a slice's alignment can change a sum's order


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


def undeclared_forward(run: Any, model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(1, 4).double(), torch.zeros(1).long())


def undeclared_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    optimizer.step()


def unclipped_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    (run.loss([0, 1]) * 1e6).backward()
    optimizer.step()


def too_many_steps(run: Any, model: nn.Module, optimizer: Any) -> None:
    for _ in range(3):
        loss = run.loss([0, 1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def too_few_steps(run: Any, model: nn.Module, optimizer: Any) -> None:
    pass


def foreign_data(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch([0], dataset=Dataset("other", Path("x"), "sha256:0"))


def nothing_declared(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch()


def nested_batch(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch(tensors=({"x": object()},))


def part_in_eval_mode(run: Any, model: Any, optimizer: Any) -> None:
    model.two.eval()
    for _ in run.steps:
        run.loss([0, 1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def negative_row(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.loss([3, -1])


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (undeclared_forward, "forward pass without a declared batch"),
        (undeclared_step, "step without a declared batch"),
        (unclipped_step, "above the declared clip_norm"),
        (too_many_steps, "more steps than the 2 declared"),
        (too_few_steps, "ended after 0 of 2 steps"),
        (foreign_data, "a data set that the stage names"),
        (nothing_declared, "without ids and tensors"),
        (nested_batch, "object in a batch cannot be recorded"),
        (part_in_eval_mode, "two is in eval mode"),
        (negative_row, "example id -1 is negative"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    tmp_path: Path, misuse: Callable[..., None], said: str
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = record(tmp_path, model)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=said) as error,
        recorder.stage(
            "one", optimizer, cross_entropy, dataset=data, steps=2, clip_norm=1.0
        ) as run,
    ):
        misuse(run, model, optimizer)
    assert error.value.remedy
    model(torch.ones(1, 4).double(), torch.zeros(1).long())  # the hooks are gone


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    table().to_parquet(tmp_path / "data.parquet")
    return Recorder(tmp_path / "record", build_mlp(), factory=build_mlp, load_batch=load_batch)


X, Y = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        X,
        {"x": X},
        "0 1",
        X[0],
        [0.0, 1.0],
        [True, False],
        torch.tensor(3),
        np.ones((2, 2), dtype=int),
        (i for i in range(3)),
        5,
        table(),
    ],
    ids=lambda batch: type(batch).__name__,
)
@pytest.mark.parametrize("declare", ["loss", "batch"])
def test_a_batch_in_the_place_of_its_ids_is_refused(
    recorder: Recorder, batch: Any, declare: str
) -> None:
    optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
    data = Dataset.open(recorder.folder.parent / "data.parquet")
    with (
        pytest.raises(RecordError, match="is no list of row numbers") as error,
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run,
    ):
        getattr(run, declare)(batch)
    assert "run.batch(tensors=batch)" in error.value.remedy


@pytest.mark.parametrize("other", ["data.parquet", table(), "data"])
def test_another_data_set_of_a_batch_must_be_one_of_the_stage(
    recorder: Recorder, other: Any
) -> None:
    optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
    data = Dataset.open(recorder.folder.parent / "data.parquet")
    with (
        pytest.raises(RecordError, match="a data set that the stage names"),
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run,
    ):
        run.loss([0, 1], dataset=other)
