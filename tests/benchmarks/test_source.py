"""The SOURCE-style baseline against the dense matrices that its docstring names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory
from benchmarks.estimators import Job
from benchmarks.readings import Evaluator
from benchmarks.settings import SETTINGS, Stage
from benchmarks.source import source

ROWS, FEATURES, CLASSES = 40, 3, 3


def tables() -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=draw)
    y = torch.randint(CLASSES, (ROWS,), generator=draw)
    return {"all": (x, y), "holdout": (x + 0.1, y)}


def build() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("known", [False, True])
def test_it_is_what_its_docstring_says(tmp_path: Path, optimizer: str, known: bool) -> None:
    momentum = {"momentum": 0.9} if optimizer == "SGD" else {"eps": 1e-4}
    setting = replace(
        SETTINGS["digits-sgd-gentle"],
        factory=build,
        optimizer=optimizer,
        options={**momentum, "weight_decay": 0.01},
        stages=tuple(Stage(name, "all", 6, 0.02) for name in ("one", "two", "three")),
        tables=tables,
        behaviours=lambda x, y: (),
        batch=8,
    )
    run = setting.make(0, tmp_path, "boundaries")
    job = Job(run, run.rerun(), Evaluator(run), 1.0)
    states = {}
    segments = run.trajectory.stages
    factors = [_propagator(stage, setting) for stage in segments]
    for index, stage in enumerate(segments[:-1]):
        scale, curved, time, decay = factors[index]
        if known:
            delta = _flat(stage.first) - _flat(stage.last)
        else:
            g = torch.stack([_gradient(s) for s in (stage.first, stage.last)]).mean(0)
            flow = torch.zeros(len(g) + 1, len(g) + 1).double()  # theta' = -P H theta + P g
            flow[:-1, :-1], flow[:-1, -1] = -scale[:, None] * curved, scale * g
            delta = decay * torch.matrix_exp(time * flow)[:-1, -1]
        for scale, curved, time, decay in factors[index + 1 :]:
            delta = decay * torch.matrix_exp(-time * scale[:, None] * curved) @ delta
        weight, bias = delta.split([FEATURES * CLASSES, CLASSES])
        theta = job.final.parameters
        states[stage.id] = State(
            {
                "weight": theta["weight"] + weight.view(CLASSES, FEATURES),
                "bias": theta["bias"] + bias,
            },
            {},
        )
    wanted = job.reader.plug_in(states).examples
    assert source(job, known=known).effects.examples == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted).max() > 0.01


def _flat(state: State) -> Tensor:
    return torch.cat([state.parameters[n].flatten() for n in ("weight", "bias")]).double()


def _gradient(state: State) -> Tensor:
    x, y = (t.double() if t.is_floating_point() else t for t in tables()["all"])
    theta = _flat(state).requires_grad_()
    loss = nn.functional.cross_entropy(_logits(theta, x), y)
    return torch.autograd.grad(loss, theta)[0]


def _logits(theta: Tensor, x: Tensor) -> Tensor:
    weight, bias = theta.split([FEATURES * CLASSES, CLASSES])
    return x @ weight.view(CLASSES, FEATURES).T + bias


def _propagator(stage: StageTrajectory, setting: object) -> tuple[Tensor, Tensor, float, float]:
    """P, H, the segment's time, and its decoupled decay; the Hessian of softmax regression is its Gauss-Newton matrix."""
    x, y = (t.double() if t.is_floating_point() else t for t in tables()["all"])

    def loss(theta: Tensor) -> Tensor:
        return nn.functional.cross_entropy(_logits(theta, x), y)

    ends = [torch.autograd.functional.hessian(loss, _flat(s)) for s in (stage.first, stage.last)]
    curved, adam = torch.stack(ends).mean(0), stage.header.optimizer == "AdamW"
    plan = next(s for s in setting.stages if s.id == stage.id)  # type: ignore[attr-defined]
    total = sum(setting.rate(plan, k) for k in range(plan.steps))  # type: ignore[attr-defined]
    if not adam:
        return (
            torch.ones(len(curved)).double(),
            curved + 0.01 * torch.eye(len(curved)),
            total * 10,
            1.0,
        )
    second = {n: slots["exp_avg_sq"] for n, slots in stage.last.optimizer_state.items()}
    root = (_flat(State(second, {})) / (1 - 0.999**plan.steps)).sqrt()
    return 1 / (root + 1e-4), curved, total, float(torch.exp(torch.tensor(-total * 0.01)))
