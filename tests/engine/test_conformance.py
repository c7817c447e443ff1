"""What every engine does, whoever computes: the engines of the package, and one that wraps another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    cross_entropy,
    load_batch,
    predict,
    train,
)
from wrapper_engine import Counting

from auditspec.engine import ENGINES, engine_named
from auditspec.engine.interface import Engine
from auditspec.errors import EstimationError, UsageError
from auditspec.record.state import State, deviation, random_state, restore

PLAN = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
    StagePlan("two", shift=1, clip_norm=0.3, carry=False),
    StagePlan("three", shift=2, carry=True, steps=5, frozen=("one",), clip_norm=0.3),
)

engines = pytest.mark.parametrize("kind", [*ENGINES, Counting], ids=lambda kind: kind.name)


def engine_on(
    kind: type[Engine],
    recorded: Recorded,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Engine:
    return kind(
        recorded.trajectory, recorded.functions, recorded.datasets, dtype=dtype, device=device
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return train(tmp_path, PLAN, build_dropped)


def same(left: State, right: State) -> bool:
    """Whether two states hold the same bits, moments included."""

    def flat(state: State) -> dict[str, Any]:
        moments = {
            f"{name}/{slot}": value
            for name, slots in state.optimizer_state.items()
            for slot, value in slots.items()
        }
        return state.parameters | state.buffers | moments

    ours, theirs = flat(left), flat(right)
    return ours.keys() == theirs.keys() and all(
        torch.equal(x, theirs[n]) if isinstance(x, Tensor) else x == theirs[n]
        for n, x in ours.items()
    )


def test_an_engine_is_found_by_its_name() -> None:
    for kind in ENGINES:
        assert engine_named(kind.name) is kind
    with pytest.raises(UsageError, match="no engine is named 'abacus'") as error:
        engine_named("abacus")
    assert "rerun" in error.value.remedy


@engines
def test_a_run_from_a_recorded_state_lands_on_the_next_bit_for_bit(
    kind: type[Engine], recorded: Recorded
) -> None:
    engine = engine_on(kind, recorded)
    for stage, start, stop in recorded.trajectory.windows():
        assert same(engine.run(stage, stage.state(start), start, stop), stage.state(stop))


@engines
def test_a_run_lands_on_the_next_state_on_every_device(
    kind: type[Engine], tmp_path: Path, device: str
) -> None:
    recorded = train(tmp_path, PLAN, build_mlp)
    engine = engine_on(kind, recorded, device=device)
    for stage, start, stop in recorded.trajectory.windows():
        reached = engine.run(stage, stage.state(start), start, stop)
        assert deviation(reached, stage.state(stop)) < 1e-9


@engines
def test_a_walk_yields_every_step_at_its_own_parameters(
    kind: type[Engine], recorded: Recorded
) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[1]
    visited = []
    for step_gradient in engine.walk(stage):
        visited.append(step_gradient.step.index)
        if step_gradient.step.index in stage.state_steps:
            recorded_theta = stage.state(step_gradient.step.index).parameters
            assert all(
                torch.equal(p, recorded_theta[n]) for n, p in step_gradient.parameters.items()
            )
        assert step_gradient.loss == pytest.approx(step_gradient.step.loss, rel=1e-12)
    assert visited == list(range(6))


@engines
def test_a_gradient_is_that_of_autograd(kind: type[Engine], tmp_path: Path, device: str) -> None:
    """Of the weighted microbatches' own losses, differentiated here."""
    recorded = train(tmp_path, PLAN, build_mlp)
    engine, stage = engine_on(kind, recorded, device=device), recorded.trajectory.stages[0]
    optimizer = engine.optimizer(stage)
    restore(stage.state(2), engine.model, optimizer)
    step = stage.steps[2]
    step_gradient = engine.gradient(stage, step, optimizer)
    close = 1e-12 if device == "cpu" else 1e-9
    model = build_mlp()
    restore(stage.state(2), model)
    data = recorded.datasets["data"]
    loss = sum(b.weight * cross_entropy(model, load_batch(data, b.ids)) for b in step.batches)
    assert isinstance(loss, Tensor)
    by_hand = torch.autograd.grad(loss, list(model.parameters()))
    for g, ours in zip(by_hand, step_gradient.gradients.values(), strict=True):
        assert ours is not None
        assert torch.allclose(g, ours.cpu(), rtol=close, atol=1e-3 * close)
    assert step_gradient.loss == pytest.approx(float(loss.detach()), rel=close)


@engines
def test_a_microbatch_gives_its_weighted_share(kind: type[Engine], recorded: Recorded) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[0]
    optimizer = engine.optimizer(stage)
    restore(stage.first, engine.model, optimizer)
    step = stage.steps[0]
    with engine.training():
        whole = engine.gradient(stage, step, optimizer).gradients
        total = {n: torch.zeros_like(p) for n, p in engine.model.named_parameters()}
        for microbatch in step.batches:
            engine.go_to_random_state(microbatch)
            _, shares = engine.back_pass(stage, microbatch, list(engine.model.parameters()))
            for name, share in zip(total, shares, strict=True):
                assert share is not None
                total[name] += share
    assert all(torch.equal(g, whole[n]) for n, g in total.items())


@engines
def test_frozen_parameters_have_no_gradient_unless_asked_for(
    kind: type[Engine], recorded: Recorded
) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[2]
    optimizer = engine.optimizer(stage)
    restore(stage.first, engine.model, optimizer)
    plain = engine.gradient(stage, stage.steps[0], optimizer)
    assert plain.gradients["one.weight"] is None
    assert not plain.frozen_gradients
    asked = engine.gradient(stage, stage.steps[0], optimizer, differentiate=True)
    assert asked.gradients["one.weight"] is None
    assert asked.frozen_gradients["one.weight"] is not None


@engines
def test_a_product_is_the_hessians(kind: type[Engine], tmp_path: Path) -> None:
    """Against central differences of the gradient in float64."""
    recorded = train(tmp_path, PLAN, build_mlp)
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[1]
    optimizer = engine.optimizer(stage)
    restore(stage.first, engine.model, optimizer)
    g = torch.Generator().manual_seed(0)
    w = {
        n: torch.randn(2, *p.shape, generator=g, dtype=p.dtype)
        for n, p in engine.model.named_parameters()
    }
    step_gradient = engine.gradient(stage, stage.steps[0], optimizer, create_graph=True)
    products = engine.hessian_vector(step_gradient, w)
    for row in range(2):
        sides = []
        for eps in (1e-5, -1e-5):
            moved = {n: p + eps * w[n][row] for n, p in stage.first.parameters.items()}
            restore(State(moved, {}), engine.model)
            sides.append(engine.gradient(stage, stage.steps[0], optimizer).gradients)
        for name, up in sides[0].items():
            down = sides[1][name]
            assert up is not None
            assert down is not None
            assert torch.allclose(products[name][row], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)


@engines
def test_a_reset_boundary_drops_the_moments_and_carry_keeps_them(
    kind: type[Engine], recorded: Recorded
) -> None:
    engine, (one, two, three) = engine_on(kind, recorded), recorded.trajectory.stages
    assert same(engine.carry_over(1, one.last), two.first)
    assert not engine.carry_over(1, one.last).optimizer_state
    assert same(engine.carry_over(2, two.last), three.first)
    assert engine.carry_over(2, two.last).optimizer_state


@engines
@pytest.mark.parametrize("extend", ["add_adapters", "new_head", "noisy_copy"])
def test_a_changed_model_is_carried_over_its_boundary(
    kind: type[Engine], extend: str, tmp_path: Path
) -> None:
    plan = (PLAN[0], StagePlan("two", shift=1, extend=extend))
    recorded = train(tmp_path, plan, build_mlp)
    engine, (one, two) = engine_on(kind, recorded), recorded.trajectory.stages
    assert deviation(engine.carry_over(1, one.last), two.first) == 0
    assert same(engine.run(two, engine.carry_over(1, one.last)), two.last)


@engines
@pytest.mark.parametrize("training", [True, False])
def test_modes_and_random_numbers_are_put_back(
    kind: type[Engine], training: bool, recorded: Recorded
) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[0]
    engine.enter(stage)
    engine.model.train(training)
    before = random_state(engine.device)["cpu"]
    for mode in (engine.training, engine.evaluating):
        with pytest.raises(KeyError, match="inside"), mode():
            assert engine.model.training is (mode == engine.training)
            torch.rand(3)
            raise KeyError("inside")
        assert engine.model.training is training
        assert torch.equal(random_state(engine.device)["cpu"], before)
    engine.run(stage, stage.first)
    assert engine.model.training is training
    assert torch.equal(random_state(engine.device)["cpu"], before)


@engines
def test_every_minibatch_gradient_is_counted(kind: type[Engine], recorded: Recorded) -> None:
    engine = engine_on(kind, recorded)
    one, two, _ = recorded.trajectory.stages
    assert engine.gradients == 0
    engine.run(one, one.first)
    assert engine.gradients == 12  # six steps of two microbatches
    engine.run(two, two.first, 0, 4)
    assert engine.gradients == 16
    engine.count(3)
    assert engine.gradients == 19


@engines
def test_outputs_are_those_of_the_training_code(kind: type[Engine], recorded: Recorded) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[-1]
    engine.enter(stage)
    restore(stage.last, engine.model)
    rows = [3, 1, 4]
    with engine.evaluating(), torch.no_grad():
        outputs = engine.outputs(predict, engine.load(recorded.datasets["data"], rows))
        model = build_dropped().eval()
        restore(stage.last, model)
        assert torch.equal(outputs, predict(model, load_batch(recorded.datasets["data"], rows)))


@engines
def test_another_precision_is_that_of_everything(kind: type[Engine], tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN[:1], build_mlp32)
    engine, stage = engine_on(kind, recorded, torch.float64), recorded.trajectory.stages[0]
    assert not engine.in_recorded_precision
    end = engine.run(stage, stage.first)
    assert all(p.dtype == torch.float64 for p in end.parameters.values())
    assert 0 < deviation(end, stage.last) < 1e-5
    assert engine_on(kind, recorded, torch.float32).in_recorded_precision


@engines
def test_a_record_without_steps_is_refused(kind: type[Engine], tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, build_mlp, "boundaries")
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[0]
    with pytest.raises(EstimationError, match="recorded without its steps"):
        engine.run(stage, stage.first)


@pytest.mark.parametrize(
    ("gives", "said"),
    [(3.5, "a float"), (None, "a NoneType"), (torch.ones(2), r"a Tensor of shape \(2,\)")],
)
@engines
def test_a_loss_that_is_no_scalar_is_refused(
    kind: type[Engine], recorded: Recorded, gives: Any, said: str
) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[0]
    leaves = list(engine.model.parameters())
    microbatch = stage.steps[0].batches[0]
    with pytest.raises(EstimationError, match=f"objective gave {said}"):
        engine.back_pass(stage, microbatch, leaves, objective=lambda model, batch: gives)


@engines
def test_a_loss_is_that_of_the_recorded_step(kind: type[Engine], recorded: Recorded) -> None:
    engine, stage = engine_on(kind, recorded), recorded.trajectory.stages[0]
    for k in stage.state_steps[:-1]:
        assert engine.loss(stage, stage.steps[k], stage.state(k)) == stage.steps[k].loss


def test_a_wrapper_sees_every_question(recorded: Recorded) -> None:
    engine = Counting(recorded.trajectory, recorded.functions, recorded.datasets)
    stage = recorded.trajectory.stages[0]
    plain = recorded.rerun().run(stage, stage.first)
    assert same(engine.run(stage, stage.first), plain)
    assert engine.asked["gradient"] == engine.asked["update"] == 6
