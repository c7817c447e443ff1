"""Classes of the training code against the rule of their name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_optimizers
import pytest
import torch
from estimates import sweep
from training import Recorded, StagePlan, build_mlp32, train

from auditspec.engine.optimizers import find_rule
from auditspec.engine.optimizers.agreement import disagreement, tells_gradients
from auditspec.errors import UnsupportedError

LION = {"lr": 0.01, "weight_decay": 0.1}


def trained(folder: Path, **options: Any) -> Recorded:
    plan = (
        StagePlan("one", optimizer="Lion", options=LION),
        StagePlan("two", optimizer="Lion", options=LION, shift=1),
    )
    return train(folder, plan, **options)


class Squared(own_optimizers.Lion):
    """Moves by the square root of its rate."""

    def step(self, closure: Any = None) -> None:
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] ** 0.5
        super().step()
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr


class Flipped(own_optimizers.Lion):
    """Keeps its momentum with the other sign."""

    def step(self, closure: Any = None) -> None:
        super().step()
        for state in self.state.values():
            state["exp_avg"].neg_()


def test_classes_that_make_other_steps_are_told_apart() -> None:
    rule = find_rule("train:Lion")
    assert rule is not None
    h = own_optimizers.Lion([torch.zeros(2)], **LION).param_groups[0]
    assert disagreement(rule, own_optimizers.Lion, h) == ""
    assert "moves the parameter" in disagreement(rule, own_optimizers.WarmLion, h)
    assert "moves the parameter" in disagreement(rule, Squared, h)
    assert "exp_avg" in disagreement(rule, Flipped, h)
    assert "KeyError" in disagreement(rule, torch.optim.SGD, {"lr": 0.1})


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Muon"])
def test_torchs_own_agree(name: str) -> None:
    rule, kind = find_rule(name), getattr(torch.optim, name)
    assert rule is not None
    assert disagreement(rule, kind, kind([torch.zeros(2, 2)], lr=0.1).param_groups[0]) == ""


def test_derivatives_are_taken_of_a_class_that_agrees_and_refused_of_another(
    tmp_path: Path,
) -> None:
    recorded = trained(tmp_path)
    final = recorded.trajectory.stages[-1].last
    found = sweep(recorded.rerun(), final, {"one": "first-order"})["one"]
    assert found.displacement > 0
    recorded.functions.optimizers["own_optimizers:Lion"] = own_optimizers.WarmLion
    with pytest.raises(UnsupportedError, match="own_optimizers:Lion is not the Lion") as error:
        sweep(recorded.rerun(), final, {"one": "first-order"})
    assert "replay" in error.value.remedy


def test_gradients_are_read_off_a_record_that_bears_the_rule_out(tmp_path: Path) -> None:
    dense = trained(tmp_path / "dense", every=1)
    assert all(tells_gradients(stage) for stage in dense.trajectory.stages)
    assert not tells_gradients(trained(tmp_path / "sparse").trajectory.stages[0])
    narrow = trained(tmp_path / "narrow", every=1, build=build_mlp32)
    assert tells_gradients(narrow.trajectory.stages[1])


def warm_step(self: Any, closure: Any = None) -> None:
    """That of another class, on the same options."""
    for group in self.param_groups:
        group["decay"] = group["weight_decay"]
    own_optimizers.WarmLion.step(self)
    for group in self.param_groups:
        del group["decay"]


def test_gradients_are_not_read_off_the_record_of_another_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_optimizers.Lion, "step", warm_step)
    recorded = trained(tmp_path, every=1)
    assert recorded.trajectory.stages[0].header.optimizer == "own_optimizers:Lion"
    assert not any(tells_gradients(stage) for stage in recorded.trajectory.stages)
