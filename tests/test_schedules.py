"""Declared courses of the learning rate are those that torch and transformers make."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from auditspec.schedules import (
    Constant,
    ConstantWithWarmup,
    Cosine,
    Course,
    InverseSqrt,
    Linear,
    Polynomial,
    Schedule,
    WarmupStableDecay,
)

STEPS, RATE = 23, 0.3


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]) / RATE)
        optimizer.step()
        scheduler.step()
    return found


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def course(declared: Course, steps: int = STEPS) -> list[float]:
    return [declared.share(step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "warmup", "options", "declared"),
    [
        ("constant", 0, {}, Constant()),
        ("constant_with_warmup", 5, {}, ConstantWithWarmup(warmup=5)),
        ("linear", 0, {}, Linear()),
        ("linear", 5, {}, Linear(warmup=5)),
        ("cosine", 5, {}, Cosine(warmup=5)),
        ("cosine_with_min_lr", 5, {"min_lr_rate": 0.1}, Cosine(warmup=5, end=0.1)),
        ("polynomial", 4, {"lr_end": 0.03, "power": 2.0}, Polynomial(warmup=4, end=0.1, power=2.0)),
        ("inverse_sqrt", 5, {}, InverseSqrt(warmup=5)),
        ("inverse_sqrt", 0, {}, InverseSqrt()),
        ("inverse_sqrt", 3, {"timescale": 7}, InverseSqrt(warmup=3, timescale=7)),
        *(
            (
                "warmup_stable_decay",
                4,
                {"num_decay_steps": 6, "min_lr_ratio": 0.2, "decay_type": shape},
                WarmupStableDecay(warmup=4, decay=6, end=0.2, shape=shape),
            )
            for shape in ("cosine", "linear", "1-sqrt")
        ),
    ],
)
def test_against_transformers(
    name: str, warmup: int, options: dict[str, Any], declared: Course
) -> None:
    transformers = pytest.importorskip("transformers")
    own = optimizer()
    scheduler = transformers.get_scheduler(
        name, own, warmup, STEPS, scheduler_specific_kwargs=options
    )
    assert course(declared) == pytest.approx(rates(scheduler, own), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "declared"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), Cosine()),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.03), Cosine(end=0.1)),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, STEPS), Linear(end=0.25)),
        (lambda o: lr_scheduler.PolynomialLR(o, STEPS, 3.0), Polynomial(power=3.0)),
        (lambda o: lr_scheduler.PolynomialLR(o, 9, 3.0), Polynomial(power=3.0, steps=9)),
        (lambda o: lr_scheduler.LinearLR(o, 1.0, 0.5, 40), Linear(end=0.5, steps=40)),
    ],
)
def test_against_torch(make: Any, declared: Course) -> None:
    own = optimizer()
    assert course(declared) == pytest.approx(rates(make(own), own), abs=1e-12)


def test_warmup_as_a_share() -> None:
    """As transformers rounds it: up."""
    assert course(Linear(warmup=0.1)) == course(Linear(warmup=math.ceil(0.1 * STEPS)))


@pytest.mark.parametrize("name", ["constant", "linear", "polynomial", "cosine", "inverse_sqrt"])
def test_names_alone(name: str) -> None:
    declared = TypeAdapter(Schedule).validate_python(name)
    assert declared.name == name and course(declared)[0] == 1
