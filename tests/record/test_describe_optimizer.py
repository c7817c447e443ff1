"""Optimizers in the words of a record; what has no words is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_optimizers as own
import pytest
import torch
from torch import nn
from training import (
    StagePlan,
    build_mlp,
    cross_entropy,
    load_batch,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.artifacts.digest import digest_file
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError, RecordError


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda p: local_class()(p, lr=0.1), r"Local.* cannot be named in a record"),
        (lambda p: own.Hidden(p, factor=2.0), "Hidden keeps factor outside its parameter groups"),
        (lambda p: own.Unruly(p, 0.1, None), "Unruly cannot be built from its own .*TypeError"),
        (
            lambda p: own.WarmLion([{"params": p, "names": {"a": 1}}]),
            r"WarmLion's option 'names' \(dict\) cannot be recorded",
        ),
        (
            lambda p: torch.optim.SGD(p, weight_decay=math.inf),
            "'weight_decay' .* cannot be recorded",
        ),
        (lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)), "learning rate that is a tensor"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS needs a closure"),
        (lambda p: torch.optim.SGD([*p, torch.ones(1, requires_grad=True)]), "the model does not"),
    ],
)
def test_optimizers_that_cannot_be_recorded(
    tmp_path: Path, optimizer: Callable[..., Any], said: str
) -> None:
    model = build_mlp()
    recorder = record(tmp_path, model)
    made = optimizer(list(model.parameters()))
    with (
        pytest.raises(RecordError, match=said),
        recorder.stage("one", made, cross_entropy, steps=1),
    ):
        pass


@pytest.mark.parametrize(("clip_norm", "left"), [(1.0, []), (None, ["one.weight"]), (None, [])])
def test_a_stale_gradient_of_a_frozen_parameter_is_refused_where_it_counts(
    tmp_path: Path, clip_norm: float | None, left: list[str]
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data = Dataset.open(tmp_path / "data.parquet")
    model = build_mlp()
    cross_entropy(model, load_batch(data, [0, 1])).backward()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "one.weight")
    taken = [p for n, p in model.named_parameters() if p.requires_grad or n in left]
    stage = record(tmp_path, model).stage(
        "one", torch.optim.SGD(taken), cross_entropy, steps=1, clip_norm=clip_norm
    )
    said = r"ended after 0 of 1" if clip_norm is None and not left else "'one.weight' is frozen but"
    with pytest.raises(RecordError, match=said), stage:
        pass


def local_class() -> Any:
    class Local(torch.optim.SGD):
        pass

    return Local


def test_a_class_of_the_training_code_is_named_with_its_file(tmp_path: Path) -> None:
    options = {"lr": 0.1, "momentum": 0.9}
    recorded = train(tmp_path, (StagePlan("one", optimizer="SmallMuon", options=options),))
    header = recorded.trajectory.stages[0].header
    assert header.optimizer == "own_optimizers:SmallMuon"
    assert header.optimizer_code is not None
    assert header.optimizer_code.digest == digest_file(Path(str(own.__file__)))[0]
    assert header.groups[0].options["coefficients"] == (3.4, -4.8, 2.0)
    bare = Functions(build_mlp, load_batch, {"one": cross_entropy}, lambda m, b: m(*b[:2]))
    rerun = Rerun(recorded.trajectory, bare, recorded.datasets)
    with pytest.raises(EstimationError, match="the training code has no optimizer"):
        rerun.optimizer(recorded.trajectory.stages[0])
