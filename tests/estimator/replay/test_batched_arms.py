"""Batched arms against arms replayed one by one, and what sends them that way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import replay, replay_all
from said import said
from torch import Tensor, nn
from training import (
    SGD3,
    Mlp,
    Recorded,
    StagePlan,
    build_buffered,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    by_stage,
    cross_entropy,
    relative,
    train,
)

from auditspec.engine.batched_gradient import NotVectorizedError
from auditspec.estimator.cache import FileJournal
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.replay.batched_arms import Arms


def plan_of(optimizer: str, options: dict[str, Any]) -> tuple[StagePlan, ...]:
    """Two groups, clipping, a carried state, microbatches, and stages of unequal length."""
    common: dict[str, Any] = {"optimizer": optimizer, "options": options}
    return (
        StagePlan("one", steps=5, **common),
        StagePlan("two", steps=7, split=True, shift=1, clip_norm=0.3, **common),
        StagePlan("three", split=True, carry=True, shift=2, **common),
        StagePlan("four", shift=3, microbatches=2, **common),
        StagePlan("five", shift=4, clip_norm=0.1, **common),
    )


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 0.01, "weight_decay": 0.01}),
    "amsgrad": ("AdamW", {"lr": 0.01, "amsgrad": True}),
    "AdamW": ("AdamW", {"lr": 0.01}),
    "Adagrad": ("Adagrad", {"lr": 0.01}),
    "NAdam": ("NAdam", {"lr": 0.01}),
    "ASGD": ("ASGD", {"lr": 0.01}),
    "Rprop": ("Rprop", {"lr": 0.01}),
    "RMSprop": ("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.5}),
    "Adadelta": ("Adadelta", {"lr": 1.0}),
    "Adamax": ("Adamax", {"lr": 0.01}),
    "RAdam": ("RAdam", {"lr": 0.01}),
    "Adafactor": ("Adafactor", {"lr": 0.01}),  # not elementwise
}


def both(
    recorded: Recorded, vectorized: bool | None = True
) -> tuple[dict[str, Counterfactual], dict[str, Counterfactual]]:
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    stages = [stage.id for stage in recorded.plan]
    return (
        by_stage(replay_all(rerun, final, Arm.each(stages), batched=vectorized)),
        {stage: replay(rerun, final, Arm.without(stage)) for stage in stages},
    )


def same_bits(left: Counterfactual, right: Counterfactual) -> bool:
    pairs = [
        (left.state.parameters, right.state.parameters),
        (left.state.buffers, right.state.buffers),
    ]
    return all(torch.equal(a[n], t) for a, b in pairs for n, t in b.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("build", [build_mlp, build_dropped])
def test_batched_arms_are_replayed_arms(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str
) -> None:
    recorded = train(tmp_path, plan_of(*OPTIMIZERS[optimizer]), build)
    batched, replayed = both(recorded)
    for stage, found in batched.items():
        assert found.notes == ()
        assert relative(found.delta, replayed[stage].delta) < 1e-9
        assert found.gradients == replayed[stage].gradients
        assert found.displacement > 1e-3


@pytest.mark.parametrize("build", [build_tied, build_normed, build_buffered])
def test_ties_and_buffers_are_batched_too(tmp_path: Path, build: Callable[[], nn.Module]) -> None:
    batched, replayed = both(train(tmp_path, plan_of(*OPTIMIZERS["momentum"]), build))
    for stage, found in batched.items():
        assert found.notes == ()
        assert relative(found.delta, replayed[stage].delta) < 1e-9
        assert relative(found.state.buffers, replayed[stage].state.buffers) < 1e-9


@pytest.mark.parametrize("optimizer", ["momentum", "AdamW"])
def test_in_float32_batching_changes_delta_by_rounding(tmp_path: Path, optimizer: str) -> None:
    batched, replayed = both(train(tmp_path, plan_of(*OPTIMIZERS[optimizer]), build_mlp32))
    off = [relative(found.delta, replayed[stage].delta) for stage, found in batched.items()]
    assert max(off) < 1e-4
    assert max(off) > 0  # it really was another order of sums


def test_both_worlds_need_not_round_alike(tmp_path: Path) -> None:
    """The untouched run as an arm ends beside the recorded one, orders below any stage's delta."""
    plan = (StagePlan("one"), *(StagePlan(f"later{i}", steps=40, shift=i) for i in range(1, 4)))
    recorded = train(tmp_path, plan, build_mlp32, every=100)
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    states = dict.fromkeys(("a", "b"), stages[1].first)
    for stage in stages[1:]:
        with rerun.training():
            arms = Arms(rerun, stage, {a: s.without_optimizer() for a, s in states.items()})
            for step in stage.steps:
                arms.update(step, arms.gradients(step))
        states = arms.states()
    final = stages[-1].last
    drift = {n: p - final.parameters[n] for n, p in states["a"].parameters.items()}
    delta = min(c.displacement for c in both(recorded)[0].values())
    assert math.sqrt(sum(float(d.square().sum()) for d in drift.values())) < 1e-4 * delta


class Unreached(Mlp):
    """One of its parameters is not reached by the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


def build_unreached() -> nn.Module:
    return Unreached().double()


def test_frozen_and_unreached_parameters_stay(tmp_path: Path) -> None:
    plan = tuple(replace(s, frozen=("one.",)) for s in plan_of(*OPTIMIZERS["AdamW"]))
    batched, replayed = both(train(tmp_path, plan, build_unreached))
    for stage, found in batched.items():
        assert found.notes == ()
        assert relative(found.delta, replayed[stage].delta) < 1e-9
        for name in ("one.weight", "one.bias", "unused"):
            assert not found.delta[name].any()


def test_stages_may_freeze_other_parameters(tmp_path: Path) -> None:
    frozen = [(), ("one.",), ("two.",), ("one.weight",), ()]
    plan = plan_of(*OPTIMIZERS["momentum"])
    plan = tuple(
        replace(s, frozen=f, carry=False, split=False) for s, f in zip(plan, frozen, strict=True)
    )
    batched, replayed = both(train(tmp_path, plan))
    for stage, found in batched.items():
        assert found.notes == ()
        assert relative(found.delta, replayed[stage].delta) < 1e-9


def test_an_interrupted_pass_goes_on_from_its_journal(tmp_path: Path) -> None:
    recorded = train(tmp_path, plan_of(*OPTIMIZERS["AdamW"]))
    final, journal = recorded.trajectory.stages[-1].last, tmp_path / "journal.safetensors"
    whole = by_stage(replay_all(recorded.rerun(), final, Arm.each(["one", "two"]), batched=True))
    for stop in (9, 14, 20):
        made: list[int] = []

        def interrupt(gradients: int, stop: int = stop, made: list[int] = made) -> None:
            made.append(gradients)
            if sum(made) > stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            replay_all(
                recorded.rerun(),
                final,
                Arm.each(["one", "two"]),
                batched=True,
                visit=interrupt,
                journal=FileJournal(journal, share=0.0),
            )
        rest: list[int] = []
        found = by_stage(
            replay_all(
                recorded.rerun(),
                final,
                Arm.each(["one", "two"]),
                batched=True,
                visit=rest.append,
                journal=FileJournal(journal, share=0.0),
            )
        )
        journal.unlink()
        assert sum(rest) < sum(c.gradients for c in whole.values())
        for stage, counterfactual in found.items():
            assert relative(counterfactual.delta, whole[stage].delta) < 1e-9


# --- what vmap cannot take, or takes wrongly ------------------------------------------------------


def looks_at_the_loss(model: nn.Module, batch: Any) -> Tensor:
    loss = cross_entropy(model, batch)
    return loss * 2 if loss.item() > 1 else loss


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * 3


def has_its_own_derivative(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = Scaled.apply(cross_entropy(model, batch))
    return found


def tells_the_two_apart(model: nn.Module, batch: Any) -> Tensor:
    """Silently another loss where the model's parameters are not its own."""
    loss = cross_entropy(model, batch)
    return loss if isinstance(next(model.parameters()), nn.Parameter) else loss * 1.01


def writes_into_its_input(model: nn.Module, batch: Any) -> Tensor:
    x, token, y = batch
    x[:, 3] = model.one.bias.detach()[0]
    return cross_entropy(model, (x, token, y))


@pytest.mark.parametrize(
    ("objective", "why"),
    [
        (looks_at_the_loss, "item"),
        (has_its_own_derivative, "vmap"),
        (tells_the_two_apart, "not the ordinary one"),
        (writes_into_its_input, "vmap"),
    ],
)
def test_what_cannot_be_batched_is_replayed_bit_for_bit(
    tmp_path: Path, objective: Callable[..., Tensor], why: str
) -> None:
    plan = plan_of(*OPTIMIZERS["momentum"])
    batched, replayed = both(train(tmp_path, plan, objective=objective))
    for stage, found in batched.items():
        assert same_bits(found, replayed[stage])
    assert why in said(batched["one"].notes)
    assert batched["five"].notes == ()  # nothing was run


def looks_at_the_labels(model: nn.Module, batch: Any) -> Tensor:
    """The branch is one of Python, on values that all arms share: vmap takes it, a tape cannot."""
    loss = cross_entropy(model, batch)
    return loss * 2 if batch[2].tolist()[0] == 1 else loss


def test_a_branch_on_the_minibatch_is_not_baked_in(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, objective=looks_at_the_labels)
    labels = [
        int(recorded.datasets["data"].frame["y"].iloc[step.batches[0].ids[0]]) == 1
        for step in recorded.trajectory.stages[2].steps
    ]
    assert len(set(labels)) == 2  # both branches are taken
    batched, replayed = both(recorded)
    assert batched["one"].notes == ()
    for stage, found in batched.items():
        assert relative(found.delta, replayed[stage].delta) < 1e-9


def fails_late(model: nn.Module, batch: Any) -> Tensor:
    loss = cross_entropy(model, batch)
    return loss * (loss.item() if batch[2].tolist()[0] == 1 else 1)


def test_progress_is_told_once(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, objective=fails_late)
    made: list[int] = []
    final = recorded.trajectory.stages[-1].last
    found = by_stage(
        replay_all(
            recorded.rerun(), final, Arm.each(["one", "two"]), batched=True, visit=made.append
        )
    )
    assert found["one"].notes
    assert sum(made) == sum(c.gradients for c in found.values()) == 18
    assert min(made) > 0


# --- the choice -----------------------------------------------------------------------------------


def test_unasked_small_models_are_batched_and_others_are_not(tmp_path: Path) -> None:
    small, _ = both(train(tmp_path / "small", SGD3), None)
    assert "a single arm" in said(small["one"].notes)
    assert "three" not in said(small["one"].notes)
    normed, replayed = both(train(tmp_path / "normed", SGD3, build_normed), None)
    assert "three: BatchNorm" in said(normed["one"].notes)
    assert all(same_bits(found, replayed[stage]) for stage, found in normed.items())


class Wide(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 20000), nn.Linear(20000, 3)


def build_wide() -> nn.Module:
    return Wide().double()


def test_large_operations_are_not_batched_unasked(tmp_path: Path) -> None:
    found, replayed = both(train(tmp_path, SGD3, build_wide, every=10), None)
    assert "too large" in said(found["one"].notes)
    assert all(same_bits(c, replayed[stage]) for stage, c in found.items())


def test_half_precision_is_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3)
    rerun, stage = recorded.rerun(dtype=torch.bfloat16), recorded.trajectory.stages[1]
    with pytest.raises(NotVectorizedError, match="below-float32"):
        Arms(rerun, stage, {"one": stage.first})


# --- the pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arms_one_by_one_are_the_rerun_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    recorded = train(tmp_path, plan_of(*OPTIMIZERS[optimizer]), build_normed)
    rerun = recorded.rerun()
    for stage in recorded.trajectory.stages[1:3]:
        states = {"first": stage.first, "last": stage.last}
        with rerun.training():
            arms = Arms(rerun, stage, states, vectorized=False)
            for step in stage.steps:
                arms.update(step, arms.gradients(step))
        for name, found in arms.states().items():
            wanted = rerun.run(stage, states[name])
            assert all(torch.equal(found.parameters[n], p) for n, p in wanted.parameters.items())
            assert all(torch.equal(found.buffers[n], b) for n, b in wanted.buffers.items())
            assert {n: set(s) for n, s in found.optimizer_state.items()} == {
                n: set(s) for n, s in wanted.optimizer_state.items()
            }


def test_batched_arms_are_single_ones_on_every_device(tmp_path: Path, device: str) -> None:
    recorded = train(tmp_path, plan_of(*OPTIMIZERS["AdamW"]))
    final = recorded.trajectory.stages[-1].last
    arms = Arm.each(["one", "two"])
    there = by_stage(replay_all(recorded.rerun(device=device), final, arms, batched=True))
    here = by_stage(replay_all(recorded.rerun(), final, arms, batched=False))
    assert relative(there["one"].delta, here["one"].delta) < 1e-9
