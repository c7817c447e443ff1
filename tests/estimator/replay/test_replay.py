"""Replay against really retraining with torch.optim, which knows nothing of the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import replay, replay_all
from torch import nn
from training import (
    SGD3,
    StagePlan,
    build_dropped,
    build_embedded,
    build_mlp,
    build_mlp32,
    build_normed,
    build_routed,
    build_sparse,
    build_tied,
    by_stage,
    own_loss,
    parameters,
    relative,
    retrain,
    smoothed,
    train,
)

from auditspec.errors import EstimationError, RecordError
from auditspec.estimator.cache import FileJournal
from auditspec.estimator.interventions import Arm
from auditspec.record.deviation import distance, optimizer_state_distance

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3),
    StagePlan("three", split=True, shift=2, carry=True),
    StagePlan("four", optimizer="RMSprop", options={"lr": 0.01}, shift=3),
)


@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped, build_normed, build_mlp32])
def test_replay_is_retraining_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, MIXED, build, every)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for stage in MIXED:
        found = replay(rerun, final, Arm.without(stage.id))
        model = retrain(recorded, stage.id)
        assert all(torch.equal(found.state.parameters[n], p) for n, p in parameters(model).items())
        assert all(torch.equal(found.state.buffers[n], b) for n, b in model.named_buffers())
        assert found.displacement > 1e-3
        assert found.exact


@pytest.mark.parametrize(
    "name", ["Adagrad", "NAdam", "RAdam", "Adadelta", "Adamax", "ASGD", "Rprop", "Adafactor"]
)
def test_replay_takes_any_optimizer_of_torch(tmp_path: Path, name: str) -> None:
    plan = (
        StagePlan("one"),
        StagePlan("two", optimizer=name, options={"lr": 0.01}, shift=1),
        StagePlan("three", optimizer=name, options={"lr": 0.01}, shift=2, carry=True),
    )
    recorded = train(tmp_path, plan)
    found = replay(recorded.rerun(), recorded.trajectory.stages[-1].last, Arm.without("one"))
    assert relative(found.state.parameters, parameters(retrain(recorded, "one"))) < 1e-9


@pytest.mark.parametrize("every", [1, 4, 50], ids=["dense", "sparse", "ends"])
@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
        ("Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.1}),
        ("NAdam", {"lr": 0.01}),
        ("WarmLion", {"lr": 0.01, "betas": (0.8, 0.95)}),
        ("Decayed", {"lr": 0.01}),
        ("SmallMuon", {"lr": 0.01, "momentum": 0.9, "coefficients": (3.0, -4.0, 1.5)}),
    ],
)
def test_replay_takes_optimizers_of_the_training_code_bit_for_bit(
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
    build: Callable[[], nn.Module],
    every: int,
) -> None:
    plan = (
        StagePlan("one"),
        StagePlan("two", optimizer=name, options=options, shift=1),
        StagePlan("three", optimizer=name, options=options, shift=2, carry=True),
        StagePlan("four", optimizer=name, options=options, shift=3),
    )
    recorded = train(tmp_path, plan, build, every)
    boundaries = [s.header.boundary for s in recorded.trajectory.stages]
    assert boundaries == ["reset", "reset", "carry", "reset"]
    final = recorded.trajectory.stages[-1].last
    assert parameters(recorded.model).keys() == final.parameters.keys()
    for stage in plan:
        found = replay(recorded.rerun(), final, Arm.without(stage.id))
        wanted = parameters(retrain(recorded, stage.id))
        assert all(torch.equal(found.state.parameters[n], p) for n, p in wanted.items())
        assert found.displacement > 1e-3
    rerun = recorded.rerun()
    for part, start, stop in recorded.trajectory.windows():
        reached, kept = rerun.run(part, part.state(start), start, stop), part.state(stop)
        assert distance(reached, kept) == optimizer_state_distance(reached, kept) == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("build", [build_mlp, build_tied, build_normed])
def test_replay_freezes_what_each_stage_froze(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    names = [n for n, _ in build().named_parameters()]
    plan = (
        StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, frozen=(names[-1],)),
        StagePlan("two", shift=1, frozen=(names[0],), lean=True, clip_norm=0.3),
        StagePlan("three", shift=2, frozen=(names[0], names[1]), lean=True, carry=True),
        StagePlan("four", optimizer="WarmLion", options={"lr": 0.01}, shift=3, frozen=(names[1],)),
    )
    recorded = train(tmp_path, plan, build, every)
    stages = recorded.trajectory.stages
    assert [s.header.frozen for s in stages] == [
        tuple(n for n in names if n.startswith(stage.frozen)) for stage in plan
    ]
    assert torch.equal(stages[1].first.parameters[names[0]], stages[2].last.parameters[names[0]])
    rerun = recorded.rerun()
    for stage in plan:
        found = replay(rerun, stages[-1].last, Arm.without(stage.id))
        model = retrain(recorded, stage.id)
        assert all(torch.equal(found.state.parameters[n], p) for n, p in parameters(model).items())
        assert all(torch.equal(found.state.buffers[n], b) for n, b in model.named_buffers())
    for part, start, stop in recorded.trajectory.windows():
        assert distance(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def test_all_stages_at_once_are_retraining(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    found = by_stage(replay_all(rerun, final, Arm.each(["four", "one", "three"])))
    assert list(found) == ["four", "one", "three"]
    for stage, counterfactual in found.items():
        wanted = parameters(retrain(recorded, stage))
        assert relative(counterfactual.state.parameters, wanted) < 1e-12
        assert counterfactual.exact
        assert counterfactual.method == "replay"
        assert (counterfactual.seconds > 0) == (stage != "four")
    assert [c.gradients for c in found.values()] == [0, 18, 6]


def test_starts_replace_the_recorded_states(tmp_path: Path) -> None:
    recorded = train(tmp_path)
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    start = stages[2].first
    for batched in (True, False):
        found = by_stage(
            replay_all(
                rerun,
                stages[-1].last,
                Arm.each(["one", "two"]),
                batched=batched,
                starts={"two": start},
            )
        )
        alone = replay(rerun, stages[-1].last, Arm.without("two"), starts={"two": start})
        assert relative(found["two"].delta, alone.delta) < 1e-9
        assert (
            relative(found["one"].delta, replay(rerun, stages[-1].last, Arm.without("one")).delta)
            < 1e-9
        )


@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped, build_normed])
@pytest.mark.parametrize("objective", [smoothed, own_loss])
def test_replay_takes_any_loss_bit_for_bit(
    tmp_path: Path, objective: Callable[..., Any], build: Callable[[], nn.Module]
) -> None:
    """With accumulation, clipping, carried moments, and a schedule besides."""
    recorded = train(tmp_path, MIXED, build, every=4, objective=objective)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for stage in MIXED:
        found = replay(rerun, final, Arm.without(stage.id))
        model = retrain(recorded, stage.id)
        assert all(torch.equal(found.state.parameters[n], p) for n, p in parameters(model).items())
        assert all(torch.equal(found.state.buffers[n], b) for n, b in model.named_buffers())


@pytest.mark.parametrize("build", [build_tied, build_embedded, build_sparse])
def test_replay_leaves_rows_that_no_example_uses_to_the_optimizer(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    """Weight decay shrinks them, sparse gradients leave them, a tie trains them through the head."""
    sparse = build is build_sparse
    name, options = (
        ("SparseAdam", {"lr": 0.01})
        if sparse
        else (
            "AdamW",
            {"lr": 0.01, "weight_decay": 0.1},
        )
    )
    plan = tuple(
        StagePlan(s, 6, name, options, shift=i, carry=i == 1, microbatches=2)
        for i, s in enumerate(("one", "two", "three"))
    )
    recorded = train(tmp_path, plan, build)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for stage in plan:
        found = replay(rerun, final, Arm.without(stage.id)).state.parameters
        wanted = parameters(retrain(recorded, stage.id))
        assert all(torch.equal(found[n], p) for n, p in wanted.items())
    first = recorded.trajectory.stages[0].first.parameters["embed.weight"][5:]
    assert torch.equal(final.parameters["embed.weight"][5:], first) is sparse


@pytest.mark.parametrize("every", [1, 4])
def test_replay_skips_and_decays_what_the_run_did(tmp_path: Path, every: int) -> None:
    """A head that a step does not use: no gradient at first, then zeros or none, as zero_grad has it."""
    decayed = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    adamw = {"lr": 0.01, "weight_decay": 0.1}
    plan = (
        StagePlan("one", 8, options=decayed, keep_gradients=True),
        StagePlan("two", 8, options=decayed, shift=1),
        StagePlan("three", 8, "AdamW", adamw, shift=2, keep_gradients=True, clip_norm=0.3),
        StagePlan("four", 8, "WarmLion", {"lr": 0.01, "decay": 0.1}, shift=3, keep_gradients=True),
    )
    recorded = train(tmp_path, plan, build_routed, every)
    steps = [stage.steps for stage in recorded.trajectory.stages]
    seen = [[set(step.without_gradient or ()) for step in stage] for stage in steps]
    assert all("idle" in skipped for stage in seen for skipped in stage)
    heads = {"two.weight", "other.weight"}
    assert any(heads & skipped for skipped in seen[0])  # not used so far
    assert not any(heads & skipped for skipped in (seen[0][-1], *seen[3]))  # zeros from then on
    assert all(len(heads & skipped) == 1 for skipped in seen[1][1:])  # one head a step
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    every_arm = by_stage(replay_all(recorded.rerun(), final, Arm.each([s.id for s in plan])))
    for stage in plan:
        found = replay(rerun, final, Arm.without(stage.id))
        wanted = parameters(retrain(recorded, stage.id))
        assert all(torch.equal(found.state.parameters[n], p) for n, p in wanted.items())
        assert relative(every_arm[stage.id].delta, found.delta) < 1e-9
    for part, start, stop in recorded.trajectory.windows():
        assert distance(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def test_decay_of_unused_heads_is_no_formality(tmp_path: Path) -> None:
    """Kept and dropped gradients of zero end elsewhere, so ignoring the difference would show."""
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    kept, dropped = (
        train(
            tmp_path / str(keep),
            (StagePlan("one", 8, options=options, keep_gradients=keep),),
            build_routed,
        )
        for keep in (True, False)
    )
    assert relative(parameters(kept.model), parameters(dropped.model)) > 1e-3


def test_cost_is_the_later_steps(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED)
    final = recorded.trajectory.stages[-1].last
    costs = [replay(recorded.rerun(), final, Arm.without(s.id)).gradients for s in MIXED]
    assert costs == [18, 12, 6, 0]  # stage one's six steps have two microbatches; none is replayed


def test_the_record_is_replayed_in_another_precision(tmp_path: Path) -> None:
    """A float32 record in float64: close to the float32 answer, and not equal to it."""
    recorded = train(tmp_path, SGD3, build_mlp32)
    final = recorded.trajectory.stages[-1].last
    narrow = replay(recorded.rerun(), final, Arm.without("one"))
    wide = replay(recorded.rerun(dtype=torch.float64), final, Arm.without("one"))
    assert wide.state.parameters["one.weight"].dtype == torch.float64
    assert 0 < relative(narrow.delta, wide.delta) < 1e-4


def test_an_interrupted_replay_goes_on_where_it_stood(tmp_path: Path) -> None:
    """Interrupted at every step in turn: bitwise the same, and no finished stage is made twice."""
    recorded = train(tmp_path, MIXED, build_dropped, every=2)
    final = recorded.trajectory.stages[-1].last
    whole = replay(recorded.rerun(), final, Arm.without("one"))
    for stop in range(1, 18):
        path, left = tmp_path / f"{stop}.safetensors", stop

        def interrupt(gradients: int) -> None:
            nonlocal left
            left -= gradients
            if left < 0:
                raise KeyboardInterrupt

        journal = FileJournal(path, share=0.0)
        with pytest.raises(KeyboardInterrupt):
            replay(recorded.rerun(), final, Arm.without("one"), visit=interrupt, journal=journal)
        rerun = recorded.rerun()
        found = replay(rerun, final, Arm.without("one"), journal=FileJournal(path))
        assert rerun.gradients == 18 - stop // 6 * 6
        for name, tensor in whole.state.parameters.items():
            assert torch.equal(found.state.parameters[name], tensor)


def test_unknown_stage_and_missing_steps_are_told(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, every="boundaries")
    final = recorded.trajectory.stages[-1].last
    with pytest.raises(RecordError, match="no stage 'zero'"):
        replay(recorded.rerun(), final, Arm.without("zero"))
    with pytest.raises(EstimationError, match="without its steps"):
        replay(recorded.rerun(), final, Arm.without("one"))
    with pytest.raises(EstimationError, match="without its steps"):
        by_stage(replay_all(recorded.rerun(), final, Arm.each(["one", "three"])))
    last = replay(recorded.rerun(), final, Arm.without("three"))  # needs no step
    assert relative(last.state.parameters, recorded.trajectory.stages[-1].first.parameters) == 0


def test_replay_is_retraining_on_every_device(tmp_path: Path, device: str) -> None:
    recorded = train(tmp_path, MIXED)
    final = recorded.trajectory.stages[-1].last
    there = replay(recorded.rerun(device=device), final, Arm.without("one"))
    assert relative(there.state.parameters, parameters(retrain(recorded, "one"))) < 1e-9
