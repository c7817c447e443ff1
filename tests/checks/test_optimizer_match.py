from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from said import said
from tampering import change_header, change_option, change_steps, copy
from torch import nn
from training import Recorded, StagePlan, load_batch, train

from auditspec import Recorder
from auditspec.checks.optimizer_match import OptimizerMatch
from auditspec.record.trajectory import Trajectory
from auditspec.results import CheckResult
from auditspec.spec.models import Stage

STEPS = 6


class Cosine(StagePlan):
    """The course that a spec calls cosine: from lr towards 0 over the stage."""

    def rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            base = group.setdefault("base_lr", group["lr"])
            group["lr"] = base * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Constant(StagePlan):
    def rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        pass


SGD = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0.25,
    "weight_decay": 0.01,
    "nesterov": False,
    "maximize": False,
}
ADAMW = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.02, "amsgrad": False}
PLAN = (
    Cosine("one", steps=STEPS, options=SGD),
    Constant("two", steps=STEPS, optimizer="AdamW", options=ADAMW, split=True, shift=1),
    Constant(
        "three", steps=STEPS, optimizer="AdamW", options=ADAMW, split=True, shift=2, carry=True
    ),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN)


def declared(**changes: Any) -> list[Stage]:
    """What was really trained; `changes` to stages' optimizers, or `_fields` of stages, by stage."""
    adamw = {k: v for k, v in ADAMW.items() if k != "weight_decay"}  # the groups' decays differ
    optimizers: dict[str, dict[str, Any]] = {
        "one": {"name": "SGD", "schedule": "cosine", "state": "reset", **SGD},
        "two": {"name": "AdamW", "schedule": "constant", "state": "reset", **adamw},
        "three": {"name": "AdamW", "schedule": "constant", "state": "carry", **adamw},
    }
    stages = []
    for id_, optimizer in optimizers.items():
        fields = {
            "id": id_,
            "owner": "o",
            "description": "d",
            "data": ["data"],
            "objective": "training:cross_entropy",
            "optimizer": optimizer | changes.get(id_, {}),
        }
        stages.append(Stage.model_validate(fields | changes.get(f"{id_}_fields", {})))
    return stages


def check(recorded: Recorded, stages: list[Stage] | None = None) -> CheckResult:
    return OptimizerMatch(stages or declared(), recorded.trajectory).run()


def test_the_truth_passes(recorded: Recorded) -> None:
    found = check(recorded)
    assert (found.outcome, found.statistic) == ("pass", 0), said(found.reasons)
    assert [d.outcome for d in found.details] == ["pass"] * 3


def test_a_class_of_the_training_code_is_compared_by_its_name(tmp_path: Path) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "coefficients": (3.0, -4.0, 2.0)}
    kept = train(tmp_path, (Constant("one", optimizer="SmallMuon", options=options),))
    own = {
        "name": "own_optimizers:SmallMuon",
        "lr": 0.1,
        "momentum": 0.9,
        "schedule": "constant",
        "options": {"coefficients": [3.0, -4.0, 2.0], "iterations": 3},
    }

    def found(**changes: Any) -> CheckResult:
        stage = declared()[0].model_dump() | {"optimizer": own | changes}
        return OptimizerMatch([Stage.model_validate(stage)], kept.trajectory).run()

    assert found().outcome == "pass", said(found().reasons)
    assert "optimizer SmallMuon declared" in said(found(name="SmallMuon").reasons)
    changed = found(options={"iterations": 4, "coefficients": [3.0, -4.0, 1.9]})
    assert (changed.statistic, "iterations 4" in said(changed.reasons)) == (2, True)


@pytest.mark.parametrize(
    ("stage", "change", "word"),
    [
        ("one", {"name": "Adam"}, "optimizer Adam declared, SGD recorded"),
        ("one", {"lr": 0.11}, "largest lr"),
        ("one", {"lr": 0.1 * (1 + 3e-6)}, "largest lr"),
        ("one", {"momentum": 0.8}, "momentum"),
        ("one", {"dampening": 0.0}, "dampening"),
        ("one", {"weight_decay": 0.0}, "weight_decay"),
        ("one", {"nesterov": True}, "nesterov"),
        ("one", {"maximize": True}, "maximize"),
        ("one", {"schedule": "constant"}, "schedule constant"),
        ("one", {"state": "carry"}, "optimizer state carry declared, reset recorded"),
        ("two", {"betas": (0.9, 0.999)}, "betas"),
        ("two", {"eps": 1e-8}, "eps"),
        ("two", {"amsgrad": True}, "amsgrad"),
        ("two", {"schedule": "cosine"}, "schedule cosine"),
        ("two", {"weight_decay": 0.02}, "weight_decay"),  # the second group's is another
        ("two", {"options": {"decoupled_weight_decay": False}}, "decoupled_weight_decay"),
        ("two", {"options": {"no_such_option": 1.0}}, "no_such_option"),
        ("three", {"state": "reset"}, "optimizer state reset declared, carry recorded"),
        ("two_fields", {"data": ["other"]}, "data other declared, data recorded"),
        ("two_fields", {"data": ["data", "more"]}, "data"),
        ("two_fields", {"objective": "training:nll"}, "objective training:nll"),
    ],
    ids=lambda v: "-".join(map(str, v)) if isinstance(v, dict) else None,
)
def test_each_declared_field_that_differs_is_caught(
    recorded: Recorded, stage: str, change: dict[str, Any], word: str
) -> None:
    found = check(recorded, declared(**{stage: change}))
    assert (found.outcome, found.statistic) == ("fail", 1)
    assert word in said(found.reasons)
    guilty = stage.removesuffix("_fields")
    assert [d.subject for d in found.details if d.outcome == "fail"] == [guilty]


def test_undeclared_fields_are_not_compared(recorded: Recorded) -> None:
    minimal = declared()
    minimal[0] = Stage.model_validate(
        minimal[0].model_dump() | {"optimizer": {"name": "SGD", "lr": 0.1}}
    )
    assert check(recorded, minimal).outcome == "pass"


def test_every_difference_counts(recorded: Recorded) -> None:
    changes = {"one": {"momentum": 0.5, "dampening": 0.0}, "two": {"eps": 1e-3}}
    assert check(recorded, declared(**changes)).statistic == 3


def test_order_and_number_of_stages(recorded: Recorded) -> None:
    one, two, three = declared()
    for stages in ([two, one, three], [one, two], [one, two, three, three]):
        found = check(recorded, stages)
        assert (found.outcome, found.statistic) == ("fail", 1)
        assert "recorded one, two, three" in said(found.reasons)


@pytest.mark.parametrize(
    ("stage", "step", "group", "options", "word"),
    [
        ("one", 3, 0, {"lr": 0.06}, "lr 0.06 at step 3, not 0.05"),
        ("one", 0, 0, {"lr": 0.2}, "largest lr"),
        ("one", 2, 0, {"momentum": 0.91}, "momentum"),
        ("one", 4, 0, {"weight_decay": 0.02}, "weight_decay"),
        ("two", 3, 1, {"lr": 0.0049}, "group 1: schedule"),
        ("two", 3, 1, {"lr": 0.5}, "largest lr 0.01 declared, 0.5 recorded"),
        ("two", 5, 1, {"betas": [0.9, 0.5]}, "betas"),
        ("three", 1, 1, {"eps": 1e-6}, "eps"),
    ],
)
def test_a_change_in_one_step_of_one_group_is_caught(
    recorded: Recorded,
    tmp_path: Path,
    stage: str,
    step: int,
    group: int,
    options: dict[str, Any],
    word: str,
) -> None:
    altered = change_option(copy(recorded, tmp_path), stage, step, group, **options)
    found = check(altered)
    assert found.outcome == "fail"
    assert word in said(found.reasons)
    assert [d.subject for d in found.details if d.outcome == "fail"] == [stage]


def test_options_of_any_kind_are_compared_without_a_crash(
    recorded: Recorded, tmp_path: Path
) -> None:
    """Adafactor's eps is a pair that can hold nothing."""
    altered = change_option(copy(recorded, tmp_path), "two", 3, 1, eps=[None, 0.001])
    assert "eps" in said(check(altered).reasons)


def test_a_group_that_vanishes_is_told(recorded: Recorded, tmp_path: Path) -> None:
    def drop(rows: list[dict[str, Any]]) -> None:
        rows[2]["groups"] = rows[2]["groups"].partition("},")[0] + "}]"

    found = check(change_steps(copy(recorded, tmp_path), "two", drop))
    assert found.outcome == "fail"
    assert "parameter groups" in said(found.reasons)


def test_a_record_of_boundaries_still_shows_its_hyperparameters(tmp_path: Path) -> None:
    kept = train(tmp_path, PLAN, every="boundaries")
    assert check(kept).outcome == "pass"
    assert "momentum" in said(check(kept, declared(one={"momentum": 0.5})).reasons)


def test_other_objectives_in_the_header_are_told(recorded: Recorded, tmp_path: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["stages"][1]["objective"]["name"] = "elsewhere:loss"

    assert "elsewhere:loss recorded" in said(
        check(change_header(copy(recorded, tmp_path), change)).reasons
    )


def test_batches_held_as_tensors_name_no_data_set(tmp_path: Path) -> None:
    """The declared data is then the auditor's word; there is nothing to compare it with."""
    model = build_line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Recorder(
            tmp_path / "record", model, every=1, factory=build_line, load_batch=load_batch
        ) as recorder,
        recorder.stage("one", optimizer, squared, steps=3) as run,
    ):
        for step in run.steps:
            x = torch.full((2, 1), float(step))
            run.batch(tensors=x)
            optimizer.zero_grad()
            squared(model, x).backward()
            optimizer.step()
    stage = Stage.model_validate(
        {
            "id": "one",
            "owner": "o",
            "description": "d",
            "data": ["stream"],
            "objective": f"{__name__}:squared",
            "optimizer": {"name": "SGD", "lr": 0.1, "schedule": "constant"},
        }
    )
    found = OptimizerMatch([stage], Trajectory.open(tmp_path / "record")).run()
    assert found.outcome == "pass", said(found.reasons)


def build_line() -> nn.Module:
    return nn.Linear(1, 1)


def squared(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def test_steps_that_read_another_data_set_are_caught(recorded: Recorded, tmp_path: Path) -> None:
    """The header names the declared data; one step was trained on something else."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[2]["batches"][0]["dataset"] = "vendor"
        return rows

    altered = change_steps(copy(recorded, tmp_path), "two", change)
    found = OptimizerMatch(declared(), altered.trajectory).run()
    assert found.outcome == "fail"
    assert "does not name: vendor" in said(found.reasons)
