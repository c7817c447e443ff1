"""Models that change between stages: recorded, re-run, carried over, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import extensions
import pytest
import torch
from deployment import deployed_as
from estimates import krylov, paired_replay, replay, replay_all, sweep
from said import said
from torch import nn
from training import (
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    by_stage,
    cross_entropy,
    load_batch,
    parameters,
    relative,
    retrain,
    train,
)

from auditspec import Recorder
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.effects import unpropagated
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError, RecordError, UnsupportedError
from auditspec.estimator.compute import baseline
from auditspec.estimator.interventions import Arm
from auditspec.record.extension import apply
from auditspec.record.trajectory import Trajectory
from auditspec.spec.checks import RecordFidelity as FidelityOptions

ADAMW = {"lr": 0.01}
BASE = ("one.base",)
ADAPTED = (
    StagePlan("one", optimizer="AdamW", options=ADAMW),
    StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1, carry=True),
    StagePlan("three", 6, "AdamW", ADAMW, shift=2, carry=True, extend="add_adapters", frozen=BASE),
    StagePlan("four", shift=3, extend="new_head", frozen=BASE, lean=True, clip_norm=0.3),
    StagePlan("five", optimizer="WarmLion", options=ADAMW, shift=4, frozen=BASE),
)
UNTIED = (
    StagePlan("one"),
    StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1, extend="untie"),
    StagePlan("three", shift=2),
)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("plan", "build"),
    [
        (ADAPTED, build_mlp),
        (ADAPTED, build_dropped),
        (ADAPTED, build_normed),
        (ADAPTED, build_mlp32),
        (UNTIED, build_tied),
    ],
)
def test_replay_across_changed_models_is_retraining_bit_for_bit(
    tmp_path: Path, plan: tuple[StagePlan, ...], build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, plan, build, every)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for stage in plan:
        found = replay(rerun, final, Arm.without(stage.id))
        model = retrain(recorded, stage.id)
        wanted = parameters(model)
        assert wanted.keys() == found.state.parameters.keys() == found.delta.keys()
        assert all(torch.equal(found.state.parameters[n], p) for n, p in wanted.items())
        assert all(torch.equal(found.state.buffers[n], b) for n, b in model.named_buffers())
        assert found.displacement > 1e-3
    assert relative(parameters(recorded.model), final.parameters) == 0


def test_the_header_says_what_became_of_every_tensor(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED)
    one, two, three, four, five = recorded.trajectory.stages
    assert [s.header.boundary for s in recorded.trajectory.stages] == [
        "reset",
        "carry",
        "carry",
        "reset",
        "reset",
    ]
    assert two.header.extend is None
    assert three.header.extend is not None
    assert three.header.extend.name == "extensions:add_adapters"
    assert set(three.header.added) == {"one.down", "one.up", "one.scale"}
    assert three.header.renamed == {
        "one.base.weight": "one.weight",
        "one.base.bias": "one.bias",
    }
    assert set(four.header.added) == {"two.weight", "two.bias"}  # the same names, other tensors
    assert four.header.renamed == {}
    assert {i.name for i in five.parameters} == five.first.parameters.keys()
    assert [i.name for i in five.buffers] == ["one.scale"]
    assert one.header.parameters is None
    assert one.parameters == recorded.trajectory.header.parameters
    assert three.first.parameters["one.base.weight"].equal(two.last.parameters["one.weight"])
    untied = train(tmp_path / "untied", UNTIED, build_tied).trajectory.stages
    assert [s.ties for s in untied] == [{"head.weight": "embed.weight"}, {}, {}]


def test_a_state_is_carried_over_by_what_became_of_its_tensors(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED)
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    left = stages[1].last
    over = rerun.carry_over(2, left)
    assert over.parameters.keys() == stages[2].first.parameters.keys()
    assert over.parameters["one.base.weight"].equal(left.parameters["one.weight"])
    assert over.parameters["one.down"].equal(stages[2].first.parameters["one.down"])
    ours, theirs = over.optimizer_state["one.base.weight"], left.optimizer_state["one.weight"]
    assert ours["exp_avg"].equal(theirs["exp_avg"])
    assert "one.down" not in over.optimizer_state
    reset = rerun.carry_over(3, stages[2].last)
    assert reset.optimizer_state == {}
    assert reset.parameters["two.weight"].equal(stages[3].first.parameters["two.weight"])
    assert not reset.parameters["two.weight"].equal(stages[2].last.parameters["two.weight"])
    left = stages[3].last
    assert relative(rerun.carry_over(4, left).parameters, left.parameters) == 0


def test_the_model_is_that_of_the_stage_entered_last(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED)
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    with rerun.training():
        for index in (3, 0, 4, 2, 1):
            rerun.enter(stages[index])
            names = dict(rerun.model.named_parameters())
            assert names.keys() == stages[index].first.parameters.keys()
            assert tuple(n for n, p in names.items() if not p.requires_grad) == (
                stages[index].header.frozen
            )
            assert rerun.model.training
    assert isinstance(rerun.model.one, nn.Linear)


def test_the_record_passes_its_own_check(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED)
    checkpoint = {n: t.clone() for n, t in recorded.model.state_dict().items()}
    options = FidelityOptions(windows="all")
    found = RecordFidelity(recorded.rerun(), deployed_as(checkpoint), options).run()
    assert (found.outcome, found.statistic) == ("pass", 0.0), said(found.reasons)


@pytest.mark.parametrize("every", [1, 4])
def test_paired_replay_with_every_step_sampled_is_replay(tmp_path: Path, every: int) -> None:
    recorded = train(tmp_path, ADAPTED, every=every)
    final, names = recorded.trajectory.stages[-1].last, [s.id for s in ADAPTED[:-1]]
    found = by_stage(paired_replay(recorded.rerun(), final, Arm.each(names), gradients=10_000))
    for name in names:
        exact = replay(recorded.rerun(), final, Arm.without(name))
        assert relative(found[name].delta, exact.delta) < 1e-9
    some = by_stage(
        paired_replay(recorded.rerun(), final, Arm.each(names), gradients=48)
    )  # 60 are all
    assert 0 < relative(some["one"].delta, found["one"].delta) < 0.5


def test_displacement_and_the_rung_below_it_have_the_last_models_names(tmp_path: Path) -> None:
    plan = (
        StagePlan("one", options={"lr": 1e-3}),
        StagePlan("two", 6, options={"lr": 1e-2}, shift=1, extend="add_adapters", frozen=BASE),
        StagePlan("three", 6, options={"lr": 1e-2}, shift=2, extend="new_head", frozen=BASE),
    )
    recorded = train(tmp_path, plan)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    found = sweep(rerun, final, {"one": "displacement", "two": "displacement"})
    for stage in ("one", "two"):
        exact = replay(rerun, final, Arm.without(stage))
        assert relative(found[stage].delta, exact.delta) < 1e-2
        below = unpropagated(rerun, final, stage)
        assert below.parameters.keys() == final.parameters.keys()
        assert below.parameters["two.weight"].equal(final.parameters["two.weight"])
    first = recorded.trajectory.stages[0]
    moved = first.first.parameters["one.weight"] - first.last.parameters["one.weight"]
    held = unpropagated(rerun, final, "one").parameters["one.base.weight"]
    assert torch.allclose(held - final.parameters["one.base.weight"], moved, atol=1e-12)


@pytest.mark.parametrize("vectorized", [True, False])
def test_batched_arms_cross_a_change_of_the_model(tmp_path: Path, vectorized: bool) -> None:
    plan = (
        StagePlan("one"),
        StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1, extend="new_head"),
        StagePlan("three", optimizer="AdamW", options=ADAMW, shift=2, carry=True),
    )
    recorded = train(tmp_path, plan)
    final, names = recorded.trajectory.stages[-1].last, ["one", "two", "three"]
    found = by_stage(replay_all(recorded.rerun(), final, Arm.each(names), batched=vectorized))
    for name in names:
        exact = replay(recorded.rerun(), final, Arm.without(name))
        assert relative(found[name].delta, exact.delta) < 1e-9
    assert not any(c.notes for c in found.values()) or not vectorized


def test_krylov_refuses_by_name(tmp_path: Path) -> None:
    plan = (StagePlan("one"), StagePlan("two", shift=1, extend="new_head"))
    recorded = train(tmp_path, plan)
    with pytest.raises(UnsupportedError, match="stage 'two' changed the model"):
        krylov(recorded.rerun(), recorded.trajectory.stages[-1].last, ["one"])


def test_the_run_is_repeated_in_another_precision(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED, build_mlp32)
    wide = recorded.rerun(dtype=torch.float64)
    run, last = baseline(wide), recorded.trajectory.stages[-1].last
    assert {t.dtype for t in run.starts["three"].parameters.values()} == {torch.float64}
    assert 0 < relative(run.final.parameters, last.parameters) < 1e-4
    narrow = replay(recorded.rerun(), last, Arm.without("two"))
    assert relative(replay(wide, run.final, Arm.without("two")).delta, narrow.delta) < 1e-2


@pytest.mark.parametrize(("stage", "step"), [("two", 3), ("three", 0), ("three", 4), ("five", 1)])
@pytest.mark.parametrize("every", [1, 4])
def test_an_interrupted_run_resumes_to_the_same_end(
    tmp_path: Path, stage: str, step: int, every: int
) -> None:
    whole = train(tmp_path / "whole", ADAPTED, build_dropped, every)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", ADAPTED, build_dropped, every, stop_at=(stage, step))
    again = train(tmp_path / "cut", ADAPTED, build_dropped, every, resume=True)
    assert relative(parameters(again.model), parameters(whole.model)) == 0
    assert again.trajectory.header.stages == whole.trajectory.header.stages


def test_resuming_without_the_change_is_refused(tmp_path: Path) -> None:
    plan = (StagePlan("one"), StagePlan("two", shift=1, extend="grow_token_bias"))
    train(tmp_path, plan)
    with pytest.raises(RecordError, match="is not the stage 'two'"):
        train(tmp_path, (plan[0], StagePlan("two", shift=1)), resume=True)


# --- refusals -----------------------------------------------------------------------------------


def open_recorder(folder: Path, model: nn.Module) -> Recorder:
    return Recorder(folder / "record", model, factory=build_mlp, load_batch=load_batch)


def test_a_change_that_no_function_made_is_refused(tmp_path: Path) -> None:
    model = build_mlp()
    recorder = open_recorder(tmp_path, model)
    extensions.add_adapters(model)
    optimizer = torch.optim.SGD(model.parameters())
    with (
        pytest.raises(RecordError, match="other parameters or buffers") as error,
        recorder.stage("one", optimizer, cross_entropy, steps=1),
    ):
        pass
    assert "recorder.extend" in error.value.remedy


def test_a_function_that_depends_on_the_weights_is_refused(tmp_path: Path) -> None:
    model = build_mlp()
    recorder = open_recorder(tmp_path, model)
    with torch.no_grad():
        model.one.weight.fill_(1e6)  # type: ignore[operator, union-attr]
    with pytest.raises(RecordError, match=r"unsteady changes a model .* otherwise"):
        recorder.extend(extensions.unsteady)


def test_one_named_function_between_stages(tmp_path: Path) -> None:
    model = build_mlp()
    recorder = open_recorder(tmp_path, model)
    with pytest.raises(RecordError, match="cannot be named"):
        recorder.extend(lambda model: None)
    recorder.extend(extensions.new_head)
    with pytest.raises(RecordError, match="was changed already"):
        recorder.extend(extensions.new_head)
    optimizer = torch.optim.SGD(model.parameters())
    with (
        pytest.raises(RecordError, match="stage 'one' is still open"),
        recorder.stage("one", optimizer, cross_entropy, steps=1),
    ):
        recorder.extend(extensions.new_head)


def test_a_function_that_was_not_loaded_or_does_something_else_is_told(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED)
    for loaded, why in (
        ({}, "add_adapters, which changed the model, was not loaded"),
        ({"extensions:add_adapters": extensions.new_head}, "makes another model"),
    ):
        objectives = recorded.functions.objectives
        functions: Any = Functions(
            build_mlp,
            load_batch,
            objectives,
            cross_entropy,
            {},
            loaded,  # type: ignore[arg-type]
        )
        rerun = Rerun(Trajectory.open(tmp_path / "record"), functions, recorded.datasets)
        with pytest.raises(EstimationError, match=why):
            rerun.enter(rerun.trajectory.stages[2])


def test_a_change_tells_objects_and_not_names_apart() -> None:
    model = build_mlp()
    assert apply(model, extensions.new_head)[1].brought == ("two.weight", "two.bias")
    _, done = apply(model, extensions.add_adapters)
    assert done.renamed == {"one.base.weight": "one.weight", "one.base.bias": "one.bias"}
    assert apply(model, lambda model: None)[1].brought == ()
