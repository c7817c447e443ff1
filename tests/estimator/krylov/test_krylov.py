"""Krylov against exact replay: closed on quadratics, convergent, and honest about what it neglects."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import krylov, replay
from torch import Tensor, nn
from training import (
    ROWS,
    SGD3,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    cross_entropy,
    relative,
    train,
)

from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError, RecordError, UnsupportedError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.curvature import curvature_at
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.krylov.segments import Declared, segments_of, steps_of
from auditspec.schedules import Constant, Cosine

EVERY_ROW = 10**6


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.map(x) + 2 * self.last(x)


def build_linear() -> nn.Module:
    return Linear().double()


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    return ((model(x, token) - nn.functional.one_hot(y, 3)) ** 2).sum(1).mean()


class FullBatch(StagePlan):
    def ids(self, step: int) -> list[int]:
        return list(range(ROWS))


def estimate(recorded: Recorded, *stages: str, **options: Any) -> dict[str, Counterfactual]:
    final = recorded.trajectory.stages[-1].last
    return krylov(recorded.rerun(), final, stages, **options)


def exact(recorded: Recorded, stage: str) -> Counterfactual:
    return replay(recorded.rerun(), recorded.trajectory.stages[-1].last, Arm.without(stage))


SGD: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.05},
    "momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.02, "dampening": 0.3},
    "nesterov": {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    "maximize": {"lr": 0.01, "momentum": 0.5, "maximize": True, "weight_decay": 0.02},
}


def forecast(recorded: Recorded, stages: Sequence[str], **options: Any) -> float:
    return Krylov(**options).forecast(recorded.trajectory, Arm.each(stages), Terms()).gradients


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
@pytest.mark.parametrize("segments", [1, 3])
def test_a_quadratic_loss_under_sgd_is_exact(
    tmp_path: Path, options: dict[str, Any], segments: int
) -> None:
    """Full batches, a cosine schedule, momentum across segments' borders; a block of stages."""
    plan = tuple(FullBatch(name, steps=12, options=options) for name in ("one", "two", "three"))
    recorded = train(tmp_path, plan, build_linear, every=5, objective=squared_error)
    found = estimate(
        recorded,
        "two",
        "one",
        vectors=30,
        segments=segments,
        examples=EVERY_ROW,
        curvature="hessian",
    )
    for stage in ("one", "two"):
        assert relative(found[stage].delta, exact(recorded, stage).delta) < 1e-8
        assert found[stage].diagnostics["nonlinearity"] < 1e-8
        assert not found[stage].exact


def test_a_carried_boundary_takes_the_momentum_along(tmp_path: Path) -> None:
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    plan = tuple(
        FullBatch(name, steps=9, options=options, carry=name != "one")
        for name in ("one", "two", "three")
    )
    recorded = train(tmp_path, plan, build_linear, every=4, objective=squared_error)
    assert [s.header.boundary for s in recorded.trajectory.stages] == ["reset", "carry", "carry"]
    found = estimate(recorded, "one", "two", vectors=30, examples=EVERY_ROW, curvature="hessian")
    for stage in ("one", "two"):
        assert relative(found[stage].delta, exact(recorded, stage).delta) < 1e-8


def test_groups_with_rates_and_decay_of_their_own_are_exact(tmp_path: Path) -> None:
    plan = tuple(FullBatch(name, steps=9, split=True) for name in ("one", "two"))
    recorded = train(tmp_path, plan, build_linear, every=4, objective=squared_error)
    found = estimate(recorded, "one", vectors=30, examples=EVERY_ROW, curvature="hessian")["one"]
    assert relative(found.delta, exact(recorded, "one").delta) < 1e-8


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("split", [False, True], ids=["one group", "two groups"])
def test_adam_is_the_recurrence_with_the_second_moment_held(
    tmp_path: Path, name: str, split: bool
) -> None:
    """Against the recurrence written out on the full Hessian, step by step."""
    options = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-3}
    plan = tuple(
        FullBatch(stage, steps=8, optimizer=name, options=options, split=split)
        for stage in ("one", "two")
    )
    recorded = train(tmp_path, plan, build_linear, every=4, objective=squared_error)
    later, rerun = recorded.trajectory.stages[1], recorded.rerun()
    state = later.state(segments_of(later, later.steps, count=1, examples=1, batch=1)[0].state)
    hessian, names = full_hessian(rerun, recorded)
    first, last = (recorded.trajectory.stages[0].state(k) for k in (0, 8))
    delta = flat(names, {n: first.parameters[n] - last.parameters[n] for n in names})
    v = flat(names, {n: state.optimizer_state[n]["exp_avg_sq"] for n in names})
    t = int(state.optimizer_state[names[0]]["step"])
    p = 1 / ((v / (1 - 0.999**t)).sqrt() + 1e-3)
    m = torch.zeros_like(delta)
    group = {n: g for g, held in enumerate(later.header.groups) for n in held.parameters}
    for k, step in enumerate(later.steps):
        shape = state.parameters
        lr, decay = (
            flat(names, {n: torch.full_like(shape[n], step.groups[group[n]][key]) for n in names})
            for key in ("lr", "weight_decay")
        )
        g = hessian @ delta + (decay * delta if name == "Adam" else 0)
        m = 0.9 * m + 0.1 * g
        shrink = 1 - lr * decay if name == "AdamW" else 1.0
        delta = shrink * delta - lr * m / (1 - 0.9 ** (k + 1)) * p
    found = estimate(recorded, "one", vectors=30, examples=EVERY_ROW, curvature="hessian")["one"]
    assert relative({"": flat(names, found.delta)}, {"": delta}) < 1e-8


def test_more_vectors_come_closer(tmp_path: Path) -> None:
    plan = tuple(FullBatch(name, steps=40) for name in ("one", "two"))
    recorded = train(tmp_path, plan, build_mlp, every=20)
    options = {"examples": ROWS, "curvature": "hessian"}
    limit = estimate(recorded, "one", vectors=60, **options)["one"]
    found = [estimate(recorded, "one", vectors=m, **options)["one"] for m in (3, 6, 12, 24)]
    errors = [relative(c.delta, limit.delta) for c in found]
    assert all(b < a / 2 for a, b in itertools.pairwise(errors))
    assert all(e < c.diagnostics["truncation"] for e, c in zip(errors, found, strict=True))


def test_a_block_of_stages_is_each_alone_in_the_whole_space(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every=3)
    options = {"vectors": 60, "examples": EVERY_ROW, "curvature": "hessian"}
    both = estimate(recorded, "one", "two", **options)
    for stage in ("one", "two"):
        alone = estimate(recorded, stage, **options)[stage]
        assert relative(both[stage].delta, alone.delta) < 1e-8


@pytest.mark.parametrize("curvature", ["positive", "gauss-newton"])
def test_negative_curvature_grows_only_where_it_is_asked_for(
    tmp_path: Path, curvature: str
) -> None:
    """A concave loss: the whole Hessian is right to grow, and its positive part stands still."""
    plan = tuple(FullBatch(name, steps=20, options={"lr": 0.02}) for name in ("one", "two"))
    recorded = train(tmp_path, plan, build_linear, every=10, objective=concave)
    options = {"vectors": 30, "examples": EVERY_ROW}
    grown = estimate(recorded, "one", curvature="hessian", **options)["one"]
    assert relative(grown.delta, exact(recorded, "one").delta) < 1e-8
    assert grown.diagnostics["growth"] > 1.5
    if curvature == "positive":
        still = estimate(recorded, "one", curvature="positive", **options)["one"]
        assert still.diagnostics["growth"] == pytest.approx(1)


def test_curvature_beyond_the_stability_limit_is_brought_within_it(tmp_path: Path) -> None:
    plan = (
        FullBatch("one", steps=5, options={"lr": 0.01}),
        FullBatch("two", steps=10, options={"lr": 1.0, "momentum": 0.5}),
    )
    recorded = train(tmp_path, plan, build_linear, every=5, objective=squared_error)
    options = {"vectors": 30, "examples": EVERY_ROW}
    wild = estimate(recorded, "one", curvature="hessian", **options)["one"]
    held = estimate(recorded, "one", **options)["one"]
    assert wild.diagnostics["growth"] > 10
    assert held.diagnostics["growth"] < 1


def test_a_displacement_that_overflows_is_no_estimate(tmp_path: Path) -> None:
    plan = (
        FullBatch("one", steps=5, options={"lr": 0.01}),
        FullBatch("two", steps=600, options={"lr": 1.0}),
    )
    recorded = train(tmp_path, plan, build_linear, every=600, objective=bounded)
    options = {"vectors": 30, "examples": ROWS}
    with pytest.raises(EstimationError, match="beyond all bounds") as error:
        estimate(recorded, "one", curvature="hessian", **options)
    assert "positive" in error.value.remedy
    assert estimate(recorded, "one", **options)["one"].diagnostics["growth"] <= 1


def test_gauss_newton_is_the_hessian_where_the_output_is_linear(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_linear, every=3)  # softmax regression
    options = {"vectors": 30, "examples": EVERY_ROW}
    found = [
        estimate(recorded, "one", curvature=curvature, **options)["one"].delta
        for curvature in ("gauss-newton", "positive")
    ]
    assert relative(*found) < 1e-8


def test_gauss_newton_leaves_out_the_models_second_derivative(tmp_path: Path) -> None:
    """J^T B J v, against J from automatic differentiation of the model's output."""
    recorded = train(tmp_path, SGD3, build_mlp, every=3)
    rerun, stage = recorded.rerun(), recorded.trajectory.stages[1]
    with rerun.training():
        held = curvature_at(rerun, stage, stage.first, stage.steps[:1], "gauss-newton")
        draw = torch.Generator().manual_seed(0)
        v = {
            n: torch.randn(p.shape, generator=draw, dtype=p.dtype)
            for n, p in rerun.model.named_parameters()
        }
        product = held.product(v)
    x, token, _ = rerun.batch(stage.steps[0].batches[0])

    def output(values: tuple[Tensor, ...]) -> Tensor:
        named = dict(zip(v, values, strict=True))
        return torch.func.functional_call(rerun.model, named, (x, token))

    theta = tuple(p.detach() for p in rerun.model.parameters())
    z, jv = torch.func.jvp(output, (theta,), (tuple(v.values()),))
    prob = z.softmax(1)
    bjv = (prob * jv - prob * (prob * jv).sum(1, keepdim=True)) / len(z)
    wanted = torch.func.vjp(output, theta)[1](bjv)[0]
    assert relative(product, dict(zip(v, wanted, strict=True))) < 1e-10


def test_gauss_newton_is_refused_where_the_loss_knows_the_weights(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every=3, objective=penalised)
    with pytest.raises(UnsupportedError, match="beside the model's output") as error:
        estimate(recorded, "one", curvature="gauss-newton")
    assert "positive" in error.value.remedy
    assert estimate(recorded, "one")["one"].gradients > 0


def test_frozen_parameters_keep_their_displacement_and_act_as_a_force(tmp_path: Path) -> None:
    plan = (
        FullBatch("one", steps=8),
        HeadOnly("two", steps=8, options={"lr": 0.02, "momentum": 0.5}),
    )
    recorded = train(tmp_path, plan, build_linear, every=4, objective=squared_error)
    found = estimate(recorded, "one", vectors=30, examples=EVERY_ROW, curvature="hessian")["one"]
    wanted = exact(recorded, "one").delta
    assert relative(found.delta, wanted) < 1e-8
    assert found.diagnostics["nonlinearity"] < 1e-8
    assert wanted["map.weight"].any()


def test_boundaries_alone_are_enough_with_a_declared_schedule(tmp_path: Path) -> None:
    """Full batches again: what is declared is what was done, so the estimate is exact."""
    plan = tuple(Steady(name, steps=10, options={"lr": 0.05}) for name in ("one", "two"))
    recorded = train(tmp_path, plan, build_linear, every="boundaries", objective=squared_error)
    known = {"two": Declared(Constant(), batch=ROWS)}
    options = {"vectors": 30, "declared": known, "curvature": "hessian"}
    found = estimate(recorded, "one", **options)["one"]
    dense = train(tmp_path / "dense", plan, build_linear, every=1, objective=squared_error)
    assert relative(found.delta, exact(dense, "one").delta) < 1e-8
    with pytest.raises(EstimationError, match="without its steps") as error:
        estimate(recorded, "one")
    assert "schedule" in error.value.remedy
    assert steps_of(recorded.trajectory.stages[1], Declared(Cosine(), lr=0.5))[5].groups[0][
        "lr"
    ] == pytest.approx(0.25)


def test_the_forecast_bounds_the_cost(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every=3)
    options = {"vectors": 4, "examples": 16, "segments": 2}
    found = estimate(recorded, "one", "two", **options)
    spent = sum(c.gradients for c in found.values())
    assert spent == pytest.approx(forecast(recorded, ["one", "two"], **options))
    # stage two: 2 segments of 2 minibatches, one stage crossing; stage three: two stages crossing
    assert spent == 2 * 2 * (1 + 2 * 4 + 1) + 2 * 2 * (1 + 2 * (2 * 4 + 1))
    whole = {"vectors": 60, "examples": EVERY_ROW}
    found = estimate(recorded, "one", **whole)
    assert found["one"].gradients < forecast(recorded, ["one"], **whole)


def test_a_stage_at_learning_rate_zero_changes_nothing(tmp_path: Path) -> None:
    plan = (StagePlan("one"), StagePlan("two", options={"lr": 0.0}))
    recorded = train(tmp_path, plan, every=3)
    found = estimate(recorded, "one")["one"]
    assert relative(found.delta, exact(recorded, "one").delta) < 1e-15
    assert found.diagnostics["growth"] == pytest.approx(1)


def test_the_last_stage_is_exact_and_costs_nothing(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every=3)
    last = estimate(recorded, "three")["three"]
    assert relative(last.state.parameters, recorded.trajectory.stages[-1].first.parameters) < 1e-15
    assert last.gradients == 0
    assert last.diagnostics["growth"] == pytest.approx(1)


def test_dropout_is_repeatable_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_dropped, every=3)
    before = torch.get_rng_state()
    found = [estimate(recorded, "one")["one"].delta for _ in range(2)]
    assert relative(*found) == 0
    assert torch.equal(before, torch.get_rng_state())


def test_float32_follows_float64(tmp_path: Path) -> None:
    deltas = [
        estimate(train(tmp_path / build.__name__, SGD3, build, every=3), "one")["one"].delta
        for build in (build_mlp32, build_mlp)
    ]
    assert relative(*deltas) < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_follows_the_cpu(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every=3)
    final = recorded.trajectory.stages[-1].last
    found = [
        krylov(recorded.rerun(device=device), final, ["one"])["one"].delta
        for device in ("cuda", "cpu")
    ]
    assert relative(*found) < 1e-8


def test_what_it_does_not_cover_is_refused_by_name(tmp_path: Path) -> None:
    normed = train(tmp_path / "normed", SGD3, build_normed, every=3)
    with pytest.raises(UnsupportedError, match="BatchNorm"):
        estimate(normed, "one")
    plan = (
        StagePlan("one"),
        StagePlan("two", optimizer="RMSprop", options={"lr": 0.01}),
    )
    with pytest.raises(UnsupportedError, match="RMSprop"):
        estimate(train(tmp_path / "rms", plan, every=3), "one")
    adam = {"optimizer": "Adam", "options": {"lr": 0.01}}
    carried = (StagePlan("one", **adam), StagePlan("two", carry=True, **adam))
    with pytest.raises(UnsupportedError, match="counter"):
        estimate(train(tmp_path / "carried", carried, every=3), "one")
    damped = {"options": {"lr": 0.01, "momentum": 0.5, "dampening": 0.5}}
    carried = (StagePlan("one", **damped), StagePlan("two", carry=True, **damped))
    with pytest.raises(UnsupportedError, match="dampening"):
        estimate(train(tmp_path / "damped", carried, every=3), "one")
    mixed = (StagePlan("one"), Decaying("two"))
    with pytest.raises(UnsupportedError, match="weight decay changes"):
        estimate(train(tmp_path / "decaying", mixed, every=3), "one")
    with pytest.raises(RecordError, match="four"):
        estimate(normed, "four")


# --- models, losses, and stages of these tests ----------------------------------------------------


def concave(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, _ = batch
    return (model(x, token)[:, 0] - model(x, token).square().sum(1)).mean()


def bounded(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Steep, and with bounded gradients: the run stays finite where its linearisation does not."""
    x, token, y = batch
    return 40 * torch.cos(3 * model(x, token) - y[:, None]).mean()


def penalised(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return cross_entropy(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())


class HeadOnly(FullBatch):
    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(model.parameters())[2:], **self.options)


class Steady(FullBatch):
    def rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        pass


class Decaying(StagePlan):
    def rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.01 * step


def flat(names: list[str], tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[n].flatten() for n in names])


def full_hessian(rerun: Rerun, recorded: Recorded) -> tuple[Tensor, list[str]]:
    """Second derivative of the squared error on all rows; it is the same at every state."""
    names = [n for n, _ in rerun.model.named_parameters()]
    batch = rerun.load(recorded.datasets["data"], range(ROWS))
    sizes = [p.numel() for p in rerun.model.parameters()]
    shapes = [p.shape for p in rerun.model.parameters()]

    def loss(theta: Tensor) -> Tensor:
        parts = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
        named = dict(zip(names, parts, strict=True))
        output = torch.func.functional_call(rerun.model, named, batch[:2])
        return ((output - nn.functional.one_hot(batch[2], 3)) ** 2).sum(1).mean()

    return torch.autograd.functional.hessian(loss, torch.zeros(sum(sizes)).double()), names
