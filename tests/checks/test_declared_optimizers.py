"""Optimizers as people declare them: groups without decay, schedules with warm-up; the first step that differs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from said import said
from torch import nn

from auditspec.checks.declared import differences
from auditspec.record.describe import tensor_infos
from auditspec.spec.models import Stage

STEPS = 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(4, 4)
        self.ln_1 = nn.LayerNorm(4)
        self.layer_norm = nn.LayerNorm(4)
        self.bn = nn.BatchNorm1d(4)


def no_decay(model: nn.Module) -> set[str]:
    """What transformers' Trainer decays, less from all."""
    transformers = pytest.importorskip("transformers")
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    return {name for name, _ in model.named_parameters()} - set(decayed)


def recorded(model: nn.Module, groups: list[dict[str, Any]], schedule: Any = None) -> Any:
    """A stage as a record has it, of an optimizer really made and stepped."""
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    scheduler = schedule(optimizer) if schedule else None

    def options() -> tuple[dict[str, Any], ...]:
        return tuple({k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups)

    header = SimpleNamespace(
        objective=SimpleNamespace(name="train:loss"),
        extend=None,
        optimizer="AdamW",
        boundary="reset",
        datasets={"data": "d"},
        groups=[
            SimpleNamespace(parameters=[names[id(p)] for p in g["params"]], options=o)
            for g, o in zip(optimizer.param_groups, options(), strict=True)
        ],
    )
    steps = []
    for _ in range(STEPS):
        steps.append(SimpleNamespace(groups=options(), batches=[SimpleNamespace(dataset="data")]))
        optimizer.step()
        if scheduler:
            scheduler.step()
    return SimpleNamespace(
        header=header, steps=steps, parameters=tuple(tensor_infos(dict(model.named_parameters())))
    )


def stage(**optimizer: Any) -> Stage:
    return Stage.model_validate(
        {
            "id": "s",
            "owner": "o",
            "description": "d",
            "data": ("data",),
            "objective": "train:loss",
            "optimizer": {"name": "AdamW", "lr": 0.01} | optimizer,
        }
    )


def told(record: Any, **optimizer: Any) -> str:
    return said([difference.note for difference in differences(stage(**optimizer), record)])


def split(model: nn.Module, spared: set[str], **options: Any) -> list[dict[str, Any]]:
    named = dict(model.named_parameters())
    return [
        {"params": [p for n, p in named.items() if n not in spared], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if n in spared], "weight_decay": 0.0} | options,
    ]


HF = {"weight_decay": 0.1, "groups": [{"parameters": "biases-and-norms", "weight_decay": 0.0}]}


def test_groups_of_the_trainer() -> None:
    model = Block()
    spared = no_decay(model)
    assert "ln_1.weight" in spared and "bn.weight" not in spared  # by its class, not by its name
    record = recorded(model, split(model, spared))
    assert told(record, **HF) == ""
    assert told(record, weight_decay=0.1) == "weight_decay 0.1 declared, 0.0, 0.1 recorded"
    wrong = {
        "weight_decay": 0.1,
        "groups": [{"parameters": "biases-and-norms", "weight_decay": 0.01}],
    }
    assert told(record, **wrong).startswith(
        "weight_decay 0.01 declared for attn.bias, 0.0 recorded"
    )


def test_a_bias_that_decays() -> None:
    model = Block()
    record = recorded(model, split(model, no_decay(model) - {"attn.bias"}))
    assert told(record, **HF) == "weight_decay 0.0 declared for attn.bias, 0.1 recorded"
    matrix = recorded(model, split(model, no_decay(model) | {"attn.weight"}))
    assert told(matrix, **HF) == "weight_decay 0.1 declared for attn.weight, 0.0 recorded"


def test_groups_by_patterns() -> None:
    model = Block()
    spared = {n for n, _ in model.named_parameters() if n.endswith("bias") or n.startswith("ln")}
    record = recorded(model, split(model, spared, lr=0.1))
    groups = [{"parameters": ["*.bias", "ln_*"], "weight_decay": 0.0, "lr": 0.1}]
    assert told(record, weight_decay=0.1, groups=groups) == ""
    other = [{"parameters": ["*.bias", "ln_*"], "weight_decay": 0.0, "lr": 0.2}]
    assert told(record, weight_decay=0.1, groups=other) == "largest lr 0.2 declared, 0.1 recorded"
    lower = [{"parameters": ["*.bias", "ln_*"], "weight_decay": 0.0, "lr": 0.005}]
    assert "largest lr 0.01 declared, 0.1 recorded" in told(record, weight_decay=0.1, groups=lower)
    none = [{"parameters": ["*.gamma"], "weight_decay": 0.0}]
    assert "no trained parameter is of the declared group 0" in told(record, groups=none)


def test_the_first_step_that_differs() -> None:
    """A schedule with warm-up, of transformers: which step is off, and what it should be."""
    transformers = pytest.importorskip("transformers")
    model = Block()

    def linear(optimizer: torch.optim.Optimizer) -> Any:
        return transformers.get_scheduler("linear", optimizer, 3, STEPS)

    record = recorded(model, split(model, no_decay(model)), linear)
    declared = {"name": "linear", "warmup": 3}
    assert told(record, schedule=declared, **HF) == ""
    assert told(record, schedule={"name": "linear", "warmup": 4}) == (
        "group 0: schedule linear declared; lr 0.003333 at step 1, not 0.0025".replace(
            "0.003333", "0.00333333"
        )
    )
    assert "schedule cosine declared; lr 0.00888889 at step 4" in told(
        record, schedule={"name": "cosine", "warmup": 3}
    )
    assert "largest lr 0.006 declared" in told(
        record, schedule={"name": "linear", "warmup": 20, "steps": 40}, lr=0.01 * 12 / 11
    )


@pytest.mark.parametrize(
    "schedule",
    [
        "linear",
        {"name": "wsd", "warmup": 2, "decay": 4, "shape": "1-sqrt"},
        {"name": "inverse_sqrt"},
    ],
)
def test_specs_say_schedules_by_name_or_with_options(schedule: Any, tmp_path: Path) -> None:
    course = stage(schedule=schedule).optimizer.course
    assert course is not None and 0 <= course.share(5, STEPS) <= 1
