"""What every source of events must come to, and what the recorder refuses of any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from trainer_source import train_with_trainer
from training import (
    StagePlan,
    build_dropped,
    build_mlp32,
    build_routed,
    cross_entropy,
    load_batch,
    train,
)

from auditspec import Recorder
from auditspec.engine.rerun import Rerun
from auditspec.errors import RecordError
from auditspec.record.format import Autocast
from auditspec.record.state import deviation
from auditspec.record.trajectory import Microbatch, Trajectory
from auditspec.recorder.events import OpenStage, Pass, Source, StepMade
from auditspec.recorder.torch_hooks import TorchHooks

PLANS = {
    "momentum, clipping, and accumulation": (
        build_dropped,
        (
            StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
            StagePlan("two", shift=1, clip_norm=0.3, split=True),
            StagePlan("three", shift=2, carry=True, clip_norm=0.3, frozen=("one",), split=True),
        ),
    ),
    "parameters without a gradient": (build_routed, (StagePlan("one"), StagePlan("two", shift=1))),
    "autocast": (build_mlp32, (StagePlan("one", autocast=torch.bfloat16),)),
}
plans = pytest.mark.parametrize("name", PLANS)


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a record, but for when it was made and how long that took."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path).drop_columns(["seconds"])
        elif path.suffix == ".json":
            header = json.loads(path.read_text())
            found[name] = {k: v for k, v in header.items() if k not in ("created", "reads")}
        else:
            found[name] = path.read_bytes()
    return found


@plans
@pytest.mark.parametrize("every", [1, 4])
def test_a_source_of_its_own_writes_the_record_of_the_hooks(
    tmp_path: Path, name: str, every: int
) -> None:
    build, plan = PLANS[name]
    train(tmp_path / "hooks", plan, build, every)
    train_with_trainer(tmp_path / "callbacks", plan, build, every)
    hooks, callbacks = (contents(tmp_path / k / "record") for k in ("hooks", "callbacks"))
    assert hooks.keys() == callbacks.keys()
    for file, held in hooks.items():
        assert callbacks[file] == held, file


@plans
def test_what_a_source_of_its_own_recorded_is_run_again_bit_for_bit(
    tmp_path: Path, name: str
) -> None:
    build, plan = PLANS[name]
    recorded = train(tmp_path / "hooks", plan, build)
    trajectory = train_with_trainer(tmp_path / "callbacks", plan, build, 2)
    rerun = Rerun(trajectory, recorded.functions, recorded.datasets)
    for stage, start, stop in trajectory.windows():
        assert deviation(rerun.run(stage, stage.state(start), start, stop), stage.state(stop)) == 0


def test_a_finished_stage_has_no_steps_left_for_any_source(tmp_path: Path) -> None:
    build, plan = PLANS["parameters without a gradient"]
    whole = train_with_trainer(tmp_path, plan, build, 2)
    again = train_with_trainer(tmp_path, plan, build, 2, resume=True)
    assert [len(s.steps) for s in again.stages] == [len(s.steps) for s in whole.stages] == [6, 6]


# --- what the recorder refuses of any source ------------------------------------------------------

GROUPS = ({"lr": 0.1},)
PASS = Pass(Microbatch("data", (0, 1), 1.0, {}))


class Liar(Source):
    """Tells what it is told to tell."""

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False


def lied(tmp_path: Path, told: Callable[[Callable[[StepMade], None]], None], **options: Any) -> Any:
    table_of = train(tmp_path / "data", (StagePlan("one", steps=1),)).datasets["data"]
    model = build_mlp32()
    recorder = Recorder(tmp_path / "record", model, factory=build_mlp32, load_batch=load_batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"steps": 2, "dataset": table_of} | options
    with recorder.stage("one", optimizer, cross_entropy, source=Liar, **options) as source:
        assert source.attached
        told(source.stage.tell)
    return source


MADE = StepMade((PASS,), GROUPS)
ELSEWHERE = replace(PASS, microbatch=replace(PASS.microbatch, rank=1))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([StepMade((), GROUPS)], "step 0: an optimizer step without a declared batch"),
        ([MADE], "ended after 1 of 2 steps"),
        ([MADE, MADE, MADE], "step 2: more steps than the 2 declared"),
        ([StepMade((PASS, ELSEWHERE), GROUPS)], "step 0: a microbatch of rank 1, of 1 process"),
        (
            [MADE, replace(MADE, autocast=Autocast(dtype="bfloat16"))],
            "step 1: autocast to bfloat16 around the objective, before no",
        ),
    ],
)
def test_what_no_source_may_tell(tmp_path: Path, told: list[StepMade], said: str) -> None:
    def tell(to: Callable[[StepMade], None]) -> None:
        for made in told:
            to(made)

    with pytest.raises(RecordError, match=said) as error:
        lied(tmp_path, tell)
    assert error.value.remedy


def test_a_run_that_stopped_early_has_the_steps_that_it_made(tmp_path: Path) -> None:
    data = train(tmp_path / "data", (StagePlan("one", steps=1),)).datasets["data"]
    model = build_mlp32()
    with (
        Recorder(
            tmp_path / "record", model, factory=build_mlp32, load_batch=load_batch
        ) as recorder,
        recorder.stage(
            "one",
            torch.optim.SGD(model.parameters(), lr=0.1),
            cross_entropy,
            steps=5,
            dataset=data,
            source=Liar,
        ) as source,
    ):
        source.stage.tell(MADE)
        source.stage.stop(4)
    (stage,) = Trajectory.open(tmp_path / "record").stages
    assert (stage.header.steps, stage.header.skipped, stage.state_steps) == (1, 4, (0, 1))


def test_a_declared_clipping_must_be_shown(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="step 0: no gradient norm"):
        lied(tmp_path, lambda tell: tell(MADE), clip_norm=1.0)
    with pytest.raises(
        RecordError, match=r"step 0: gradient norm 2 above the declared clip_norm 1"
    ):
        lied(
            tmp_path / "again",
            lambda tell: tell(replace(MADE, gradient_norm=torch.tensor(2.0))),
            clip_norm=1.0,
        )


def test_a_source_is_detached_whatever_happens(tmp_path: Path) -> None:
    sources: list[Liar] = []

    class Noted(Liar):
        def __init__(self, stage: OpenStage) -> None:
            super().__init__(stage)
            sources.append(self)

    data = train(tmp_path / "data", (StagePlan("one", steps=1),)).datasets["data"]
    model = build_mlp32()
    recorder = Recorder(tmp_path / "record", model, factory=build_mlp32, load_batch=load_batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(KeyError),
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data, source=Noted),
    ):
        raise KeyError
    assert [source.attached for source in sources] == [False]


def test_the_source_of_a_plain_loop_is_the_hooks(tmp_path: Path) -> None:
    data = train(tmp_path / "data", (StagePlan("one", steps=1),)).datasets["data"]
    model = build_mlp32()
    recorder = Recorder(tmp_path / "record", model, factory=build_mlp32, load_batch=load_batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        recorder,
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run,
    ):
        assert isinstance(run, TorchHooks)
        optimizer.zero_grad()
        run.loss([0]).backward()
        optimizer.step()
    assert Trajectory.open(tmp_path / "record").stages[0].steps[0].batches[0].rank == 0
