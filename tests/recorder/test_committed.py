"""A stage that was committed to is held against the plan while it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from committed import Run, batches, train
from training import build_mlp32, cross_entropy, load_batch, table

from auditspec import Dataset, Plan, PlannedPass, Recorder
from auditspec.errors import RecordError
from auditspec.record.plan import recorded_commitment
from auditspec.record.trajectory import Trajectory

CODE = Path(__file__)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    table().to_parquet(tmp_path / "data.parquet")
    return Dataset.open(tmp_path / "data.parquet")


def begun(folder: Path, *, resume: bool = False) -> tuple[Recorder, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_mlp32()
    recorder = Recorder(
        folder / "record",
        model,
        every=2,
        factory=build_mlp32,
        load_batch=load_batch,
        resume=resume,
    )
    return recorder, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def commit(recorder: Recorder, optimizer: torch.optim.Optimizer, data: Dataset, plan: Plan):
    return recorder.commit("tune", optimizer, cross_entropy, plan, code=CODE, dataset=data)


@pytest.mark.parametrize(
    ("made", "step"), [(batches()[:3] + batches(1)[3:], 3), (batches()[::-1], 0)]
)
def test_another_step_than_the_planned_one_is_refused(
    tmp_path: Path, data: Dataset, made: list[list[int]], step: int
) -> None:
    recorder, optimizer = begun(tmp_path)
    with pytest.raises(RecordError, match=f"step {step}: is not the step"), recorder:
        commit(recorder, optimizer, data, Plan(batches()))
        train(recorder, optimizer, Run(batches=made), data)


def test_another_rate_than_the_planned_one_is_refused(tmp_path: Path, data: Dataset) -> None:
    recorder, optimizer = begun(tmp_path)
    rates = [0.1, 0.1, 0.05, 0.05, 0.01, 0.01]
    with pytest.raises(RecordError, match="step 4: is not the step"), recorder:
        commit(recorder, optimizer, data, Plan(batches(), rates))
        train(recorder, optimizer, Run(rates=[*rates[:4], 0.02, 0.02]), data)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda model, optimizer: torch.rand(1), "random"),
        (lambda model, optimizer: model.one.bias.data.add_(1e-6), "initial"),
        (lambda model, optimizer: optimizer.param_groups[0].update(momentum=0.8), "groups"),
        (lambda model, optimizer: model.one.bias.requires_grad_(False), "frozen"),
    ],
)
def test_a_beginning_that_was_changed_since_is_refused(
    tmp_path: Path, data: Dataset, change, field: str
) -> None:
    recorder, optimizer = begun(tmp_path)
    words = f"begins otherwise than was committed to: .*{field}"
    with pytest.raises(RecordError, match=words), recorder:
        commit(recorder, optimizer, data, Plan(batches()))
        change(recorder.model, optimizer)
        train(recorder, optimizer, Run(), data)


def test_microbatches_with_weights_are_followed(tmp_path: Path, data: Dataset) -> None:
    recorder, optimizer = begun(tmp_path)
    plan = Plan(
        [[PlannedPass(b[:4], weight=0.5), PlannedPass(b[4:], weight=0.5)] for b in batches()]
    )
    with recorder:
        commitment = commit(recorder, optimizer, data, plan)
        with recorder.stage("tune", optimizer, cross_entropy, dataset=data, steps=6) as run:
            for step in run.steps:
                optimizer.zero_grad()
                for part in (batches()[step][:4], batches()[step][4:]):
                    run.loss(part, weight=0.5).backward()
                optimizer.step()
    stage = Trajectory.open(tmp_path / "record").stages[0]
    assert recorded_commitment(stage, commitment.code) == commitment


def test_a_run_that_was_killed_goes_on_by_the_same_commitment(
    tmp_path: Path, data: Dataset
) -> None:
    recorder, optimizer = begun(tmp_path)
    broken = [*batches()[:4], [99]]
    with pytest.raises(RecordError), recorder:
        first = commit(recorder, optimizer, data, Plan(batches()))
        with recorder.stage("tune", optimizer, cross_entropy, dataset=data, steps=6) as run:
            for step in run.steps:
                optimizer.zero_grad()
                run.loss(broken[step] if step < 4 else batches(1)[step]).backward()
                optimizer.step()
    recorder, optimizer = begun(tmp_path, resume=True)
    with recorder:
        again = commit(recorder, optimizer, data, Plan(batches()))
        train(recorder, optimizer, Run(), data)
    assert again == first
    assert recorded_commitment(Trajectory.open(tmp_path / "record").stages[0], first.code) == first


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(batches(), [0.1]), "1 learning rates for 6 steps"),
        (Plan([[0, 1], []]), "step 1 of the plan has a pass without rows"),
        (Plan([[PlannedPass([])]]), "step 0 of the plan has a pass without rows"),
        (Plan([["a"]]), "no list of row numbers"),
    ],
)
def test_a_plan_that_cannot_be_held_to_is_refused(
    tmp_path: Path, data: Dataset, plan: Plan, words: str
) -> None:
    recorder, optimizer = begun(tmp_path)
    with pytest.raises(RecordError, match=words), recorder:
        commit(recorder, optimizer, data, plan)
