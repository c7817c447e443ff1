"""Reference data and weights: which rows a stage is given, and which weights are refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from estimates import replay
from torch import Tensor, nn
from training import (
    Recorded,
    StagePlan,
    build_buffered,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    cross_entropy,
    load_batch,
    predict,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.references import References
from auditspec.engine.rerun import Rerun
from auditspec.errors import EvidenceError
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.record.trajectory import Trajectory

PLAN = (StagePlan("one", 12, microbatches=2), StagePlan("two", 12, shift=1))


def saved(folder: Path, frame: pd.DataFrame, name: str = "clean.parquet") -> Dataset:
    frame.to_parquet(folder / name)
    return Dataset.open(folder / name)


def test_each_example_keeps_one_row_and_takes_the_next(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN)
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    references = References(dict.fromkeys(("one", "two"), saved(tmp_path, table(5).head(20))))
    orders = []
    for stage in stages:
        rows: dict[int, int] = {}
        steps = references.steps(rerun, stage)
        assert len(steps) == 12
        for ours, theirs in zip(steps, stage.steps, strict=True):
            assert (ours.index, ours.groups) == (theirs.index, theirs.groups)
            for new, old in zip(ours.batches, theirs.batches, strict=True):
                assert (new.weight, new.rng) == (old.weight, old.rng)
                for row, example in zip(new.ids, old.ids, strict=True):
                    assert rows.setdefault(example, row) == row
        assert len(rows) == 48
        order = list(rows.values())
        assert sorted(order[:20]) == list(range(20))  # each once, before any comes round again
        assert order[20:40] == order[:20]
        assert references.steps(rerun, stage) == steps
        orders.append(order)
    assert orders[0] != orders[1]


class Tensors:
    """A run whose batches are recorded as tensors; the third step repeats the first."""

    def __init__(self, folder: Path) -> None:
        model = build_mlp()
        x, token, y = load_batch(saved(folder, table(), "own.parquet"), range(16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with (
            Recorder(
                folder / "record", model, factory=build_mlp, load_batch=load_batch
            ) as recorder,
            recorder.stage("one", optimizer, cross_entropy, steps=3) as run,
        ):
            for step in run.steps:
                rows = slice(8, 16) if step == 1 else slice(0, 8)
                run.batch(tensors=(x[rows], token[rows], y[rows]))
                optimizer.zero_grad()
                cross_entropy(model, (x[rows], token[rows], y[rows])).backward()
                optimizer.step()
        functions = Functions(build_mlp, load_batch, {"one": cross_entropy}, predict)
        self.rerun = Rerun(Trajectory.open(folder / "record"), functions, {})


def test_batches_of_tensors_take_as_many_rows(tmp_path: Path) -> None:
    rerun = Tensors(tmp_path).rerun
    (stage,) = rerun.trajectory.stages
    data = saved(tmp_path, table(5))
    first, second, third = References({"one": data}).steps(rerun, stage)
    ids = [batch.ids for step in (first, second, third) for batch in step.batches]
    assert [len(i) for i in ids] == [8, 8, 8]
    assert ids[0] == ids[2]
    assert len({*ids[0], *ids[1]}) == 16
    arm = Arm(replaced=frozenset({"one"}))
    found = replay(rerun, stage.last, arm, references=References({"one": data}))
    model = build_mlp()
    model.load_state_dict(stage.first.parameters)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for rows in ids:
        optimizer.zero_grad()
        cross_entropy(model, load_batch(data, rows)).backward()
        optimizer.step()
    assert all(torch.equal(found.state.parameters[n], p) for n, p in model.named_parameters())


def test_reference_data_that_cannot_be_drawn_from_are_told(tmp_path: Path) -> None:
    recorded = train(tmp_path)
    rerun, stage = recorded.rerun(), recorded.trajectory.stages[0]
    (tmp_path / "text.bin").write_bytes(b"words")
    with pytest.raises(EvidenceError, match="rows of the reference data cannot be drawn"):
        References({"one": Dataset.open(tmp_path / "text.bin")}).steps(rerun, stage)
    with pytest.raises(EvidenceError, match="has no rows"):
        References({"one": saved(tmp_path, table().head(0))}).steps(rerun, stage)


def weights_of(build: object) -> dict[str, Tensor]:
    torch.manual_seed(9)
    model: nn.Module = build()  # type: ignore[operator]
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "build", [build_mlp, build_mlp32, build_tied, build_normed, build_buffered]
)
def test_a_state_dict_is_a_start(tmp_path: Path, build: object) -> None:
    recorded = train(tmp_path, build=build)  # type: ignore[arg-type]
    weights, first = weights_of(build), recorded.trajectory.stages[0].first
    state = References(weights=weights).start(recorded.rerun())
    assert state.parameters.keys() == first.parameters.keys()
    assert state.buffers.keys() == first.buffers.keys()
    held = state.parameters | state.buffers
    assert all(torch.equal(held[n], t) for n, t in weights.items() if n in held)
    wide = References(weights=weights).start(recorded.rerun(dtype=torch.float32))
    assert {t.dtype for t in wide.parameters.values()} == {torch.float32}


def odd(recorded: Recorded, weights: dict[str, Tensor]) -> str:
    arm = Arm(replaced=frozenset({INITIAL}))
    final = recorded.trajectory.stages[-1].last
    with pytest.raises(EvidenceError) as error:
        replay(recorded.rerun(), final, arm, references=References(weights=weights))
    return error.value.message


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    recorded, weights = train(tmp_path / "mlp"), weights_of(build_mlp)
    assert "one.bias missing" in odd(
        recorded, {n: t for n, t in weights.items() if n != "one.bias"}
    )
    assert "third" in odd(recorded, weights | {"third": torch.ones(1)})
    assert "one.weight" in odd(recorded, weights | {"one.weight": torch.ones(6, 5)})
    assert "not finite" in odd(recorded, weights | {"one.bias": torch.full((6,), torch.nan)})
    tied, held = train(tmp_path / "tied", build=build_tied), weights_of(build_tied)
    assert "head.weight" in odd(tied, held | {"head.weight": held["head.weight"] + 1})
    del held["embed.weight"]  # its second name is enough
    References(weights=held).start(tied.rerun())
    del held["head.weight"]
    assert "embed.weight" in odd(tied, held)
