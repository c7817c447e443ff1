"""Recording: what is kept, what resuming gives, what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from training import (
    SGD3,
    StagePlan,
    build_mlp,
    build_tied,
    cross_entropy,
    load_batch,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.errors import RecordError
from auditspec.record.format import Layout

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, steps=7, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, steps=5),
    StagePlan("three", split=True, shift=2, carry=True, steps=60),
)


def test_what_a_step_used_is_in_the_record(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED)
    one, two, three = recorded.trajectory.stages
    assert [s.header.boundary for s in (one, two, three)] == ["reset", "reset", "carry"]
    assert [len(s.steps) for s in (one, two, three)] == [7, 5, 60]
    step = one.steps[3]
    assert [b.ids for b in step.batches] == [
        tuple(MIXED[0].ids(3)[0::2]),
        tuple(MIXED[0].ids(3)[1::2]),
    ]
    assert [b.weight for b in step.batches] == [0.5, 0.5]
    assert step.batches[0].dataset == "data"
    assert step.groups[0]["betas"] == (0.9, 0.999)
    rates = [s.groups[0]["lr"] for s in one.steps]
    assert rates[0] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert len(two.steps[0].groups) == 2
    assert two.steps[0].groups[1]["weight_decay"] == 0.05
    assert all(s.grad_norm is not None and s.grad_norm <= 0.3001 for s in two.steps)
    assert all(s.loss is not None and s.seconds > 0 for s in three.steps)
    digest = Dataset.open(tmp_path / "data.parquet").digest
    assert one.datasets == {"data": digest}


def test_ties_are_recorded_once(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_tied)
    assert recorded.trajectory.header.ties == {"head.weight": "embed.weight"}
    assert "head.weight" not in recorded.trajectory.stages[0].first.parameters


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


def test_a_factory_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"another model than the one recorded: .*embed\.weight"):
        record(tmp_path, build_tied())


@pytest.mark.parametrize(
    "objective", [functools.partial(cross_entropy), nn.CrossEntropyLoss(label_smoothing=0.1), max]
)
def test_a_callable_without_a_name_is_refused(tmp_path: Path, objective: Any) -> None:
    model = build_mlp()
    stage = record(tmp_path, model).stage(
        "one", torch.optim.SGD(model.parameters()), objective, steps=1
    )
    with pytest.raises(RecordError, match="cannot be named in a record"), stage:
        pass


def test_a_local_function_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be named"):
        Recorder(tmp_path / "r", build_mlp(), factory=lambda: build_mlp(), load_batch=load_batch)


@pytest.fixture
def _process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    model = nn.DataParallel(build_mlp())
    with pytest.raises(RecordError, match="DataParallel"):
        record(tmp_path, model)


@pytest.mark.usefixtures("_process")
def test_a_wrapper_for_data_parallel_training_is_taken_off(tmp_path: Path) -> None:
    model = build_mlp()
    wrapped = nn.parallel.DistributedDataParallel(model)
    recorder = record(tmp_path, wrapped)
    assert (recorder.model, recorder.wrapper) == (model, wrapped)
    assert recorder.header.layout == Layout(world_size=1, sharding="single")


class ZeroRedundancyOptimizer(torch.optim.SGD):
    """Stands where torch's own stands, whose import warns."""

    __module__ = "torch.distributed.optim.zero_redundancy_optimizer"


def test_an_optimizer_that_shares_its_state_out_is_refused(tmp_path: Path) -> None:
    model = build_mlp()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), lr=0.1)
    stage = record(tmp_path, model).stage("one", optimizer, cross_entropy, steps=1)
    with pytest.raises(RecordError, match="ZeroRedundancyOptimizer is more than the update"), stage:
        pass


def test_processes_that_do_not_know_one_another_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecordError, match="torchrun started 2 processes") as error:
        record(tmp_path, build_mlp())
    assert "init_process_group before the recorder" in error.value.remedy


def test_a_model_on_several_devices_is_refused(tmp_path: Path) -> None:
    model = build_mlp()
    next(model.children()).to("meta")
    with pytest.raises(RecordError, match="on several devices"):
        record(tmp_path, model)


def as_fsdp(model: nn.Module) -> nn.Module:
    """Its constructor wants a GPU."""
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper._fsdp_wrapped_module = model
    return wrapper


@pytest.mark.usefixtures("_process")
@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (lambda model, mesh: distribute_module(model, mesh), "is sharded"),
        (lambda model, mesh: fully_shard(model, mesh=mesh), "is sharded"),
        (lambda model, mesh: as_fsdp(model), "a FullyShardedDataParallel model"),
    ],
    ids=["tensors", "FSDP2", "FSDP"],
)
def test_sharded_models_are_refused(
    tmp_path: Path, shard: Callable[..., nn.Module], said: str
) -> None:
    with pytest.raises(RecordError, match=said):
        record(tmp_path, shard(build_mlp(), init_device_mesh("cpu", (1,))))
