"""Outputs of a recorded model that come back as data of a later stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import attributed as attribute
from extensions import keep_outputs
from factories import minimal_spec
from said import said
from torch import Tensor, nn
from training import ROWS, build_mlp, cross_entropy, load_batch, predict, table

from auditspec import Dataset, Recorder
from auditspec.attribute import Attribution
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks.model_outputs import ModelOutputs
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.estimator.interventions import INITIAL
from auditspec.estimator.model_outputs import agrees, borrowed, depending
from auditspec.record.trajectory import Trajectory
from auditspec.spec.models import Spec

View = Callable[[Tensor, Tensor], Tensor]
VIEWS: dict[str, tuple[View, str]] = {
    "teacher's logits": (lambda logits, y: logits, "logits"),
    "teacher's probabilities": (lambda logits, y: logits.softmax(1), "probabilities"),
    "reference log-probability of the true class": (
        lambda logits, y: logits.log_softmax(1).gather(1, y[:, None])[:, 0],
        "log-probabilities",
    ),
    "score of a class": (lambda logits, y: logits[:, 1], "logits"),
}
INNOCENT: dict[str, View] = {
    "the same outputs of other rows": lambda logits, y: logits.flip(0),
    "noise": lambda logits, y: torch.linspace(-1, 1, len(y)).double(),
    "a constant": lambda logits, y: torch.ones(len(y)).double(),
}


def load_with_scores(dataset: Dataset, ids: Any) -> tuple[Tensor, ...]:
    held = [c for c in dataset.frame.columns if c.startswith("score")]
    scores = torch.tensor(dataset.frame[held].to_numpy().take(list(ids), axis=0))
    return (*load_batch(dataset, ids), scores)


def anchored(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, token, y, *scores = batch
    loss = cross_entropy(model, (x, token, y))
    if scores and scores[0].numel():
        loss = loss + (model(x, token).mean() - scores[0].mean()).square()
    return loss


def read(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return predict(model, (batch[0], batch[1], batch[2]))


def recorded(folder: Path, view: View | None, *, whole: bool) -> Rerun:
    """Three stages, the last of which is given what the model says where the second begins."""
    table().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    torch.manual_seed(0)
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(
        folder / "record", model, factory=build_mlp, load_batch=load_with_scores, every=2
    )
    sets = {"data": data}
    with recorder:
        with recorder.stage("sft", optimizer, anchored, dataset=data, steps=4) as run:
            for step in run.steps:
                optimizer.zero_grad()
                run.loss(range(8 * step, 8 * step + 8)).backward()
                optimizer.step()
        x, token, y = load_batch(data, range(ROWS))
        with torch.no_grad():
            logits = model(x, token)
        with recorder.stage("polish", optimizer, anchored, dataset=data, steps=2) as run:
            for _ in run.steps:
                optimizer.zero_grad()
                run.loss(range(20, 28)).backward()
                optimizer.step()
        scores = torch.zeros(ROWS, 0) if view is None else view(logits, y).reshape(ROWS, -1)
        if not whole:
            frame = table()
            for column in range(scores.shape[1]):
                frame[f"score{column}"] = scores[:, column].numpy()
            frame.to_parquet(folder / "pairs.parquet")
            sets["pairs"] = Dataset.open(folder / "pairs.parquet")
        elif view is None:
            recorder.extend(keep_outputs, dataset=data)
        last = () if whole else sets["pairs"]
        with recorder.stage(
            "dpo", optimizer, anchored, dataset=data if view is None else last, steps=3
        ) as run:
            for step in run.steps:
                optimizer.zero_grad()
                rows = list(range(12 * step, 12 * step + 12))
                if whole and view is not None:
                    batch = (x[rows], token[rows], y[rows], scores[rows])
                    run.batch(tensors=batch)
                    anchored(model, batch).backward()
                else:
                    run.loss(rows).backward()
                optimizer.step()
    functions = Functions(
        build_mlp,
        load_with_scores,
        dict.fromkeys(("sft", "polish", "dpo"), anchored),
        read,
        extensions={"extensions:keep_outputs": keep_outputs},
    )
    return Rerun(Trajectory.open(folder / "record"), functions, sets)


@pytest.mark.parametrize("whole", [True, False], ids=["tensors", "columns"])
@pytest.mark.parametrize("name", VIEWS)
def test_outputs_of_an_earlier_model_are_recognized(tmp_path: Path, name: str, whole: bool) -> None:
    view, what = VIEWS[name]
    rerun = recorded(tmp_path, view, whole=whole)
    (found,) = borrowed(rerun)
    assert (found.stage, found.source, found.what) == ("dpo", "sft", what)
    assert depending(rerun, [found]) == {INITIAL, "sft"}
    check = ModelOutputs([found]).run()
    assert (check.outcome, check.statistic) == ("fail", 1)
    assert "'sft' ended" in said(check.reasons)
    assert "recorder.extend" in said(check.reasons)


@pytest.mark.parametrize("whole", [True, False], ids=["tensors", "columns"])
@pytest.mark.parametrize("name", INNOCENT)
def test_other_numbers_are_not(tmp_path: Path, name: str, whole: bool) -> None:
    rerun = recorded(tmp_path, INNOCENT[name], whole=whole)
    assert borrowed(rerun) == []
    check = ModelOutputs([]).run()
    assert (check.outcome, check.statistic) == ("pass", 0)


def test_outputs_that_a_function_keeps_are_made_anew_and_not_reported(tmp_path: Path) -> None:
    rerun = recorded(tmp_path, None, whole=True)
    assert borrowed(rerun) == []
    assert rerun.trajectory.stages[2].header.derived == ("outputs",)


def test_zeros_and_ones_agree_with_nothing() -> None:
    """Float labels beside a model that is sure of every class."""
    classes = torch.arange(12) % 3
    sure = nn.functional.one_hot(classes, 3).double()
    assert not agrees((classes == 1).double(), sure)
    assert not agrees(sure, sure)
    spread = sure + torch.linspace(0, 1, 36).view(12, 3).double()
    assert agrees(spread[:, 1], spread)
    assert agrees(spread.clone(), spread)
    assert not agrees(spread[:, 1] + 0.1, spread)
    assert not agrees(torch.zeros(12, 0).double(), spread)


def test_looking_leaves_the_random_state_alone(tmp_path: Path) -> None:
    rerun = recorded(tmp_path, VIEWS["score of a class"][0], whole=False)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    borrowed(rerun)
    assert torch.equal(torch.rand(1), wanted)


def attributed(rerun: Rerun, folder: Path) -> Attribution:
    data = minimal_spec()
    data["stages"] = [data["stages"][0] | {"id": s.id} for s in rerun.trajectory.stages]
    concern = {"direction": "decrease", "tolerance": 1e-4}
    behavior = {"id": "nll", "description": "d", "metric": {"name": "nll"}, "data": "holdout"}
    data["behaviors"] = [behavior | {"concern": concern}]
    data["artifacts"]["holdout"]["label"] = "y"
    data["checks"] = {"placebo": {"draws": 2}, "sampling": {"resamples": 100}}
    data["estimator"] = {"dtype": "float64"}
    wanted = Spec.model_validate(data)
    table(seed=7).to_parquet(folder / "holdout.parquet")
    sets = {"holdout": Dataset.open(folder / "holdout.parquet")}
    reader = Evaluator(rerun, wanted.behaviors, sets, {"holdout": "y"}, {})
    return attribute(wanted, reader)


def test_no_effect_through_borrowed_outputs_is_called_exact(tmp_path: Path) -> None:
    view, _ = VIEWS["reference log-probability of the true class"]
    found = attributed(recorded(tmp_path, view, whole=False), tmp_path)
    effects = {e.stage: e for e in found.effects}
    assert {stage: e.exact for stage, e in effects.items()} == {
        "sft": False,
        "polish": True,
        "dpo": True,
    }
    assert effects["sft"].error is None
    assert effects["sft"].low is None
    assert {e.stage: e.exact for e in found.estimates} == {s: e.exact for s, e in effects.items()}
    assert not any(p.exact for p in found.paths if any("sft" in part for part in p.arm))
    assert all(p.exact for p in found.paths if p.arm == ("omit polish",))
    assert ModelOutputs(found.estimated.borrowed).run().outcome == "fail"


def test_effects_through_outputs_that_are_made_anew_are_exact(tmp_path: Path) -> None:
    found = attributed(recorded(tmp_path, None, whole=True), tmp_path)
    assert all(e.exact for e in found.effects)
    assert ModelOutputs(found.estimated.borrowed).run().outcome == "pass"
