"""Autocast: recorded once a stage, repeated bit for bit, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import replay, sweep
from torch import Tensor, nn
from training import (
    SGD3,
    Recorded,
    StagePlan,
    build_dropped32,
    build_mlp32,
    build_tied32,
    cross_entropy,
    load_batch,
    parameters,
    relative,
    retrain,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.errors import RecordError, UnsupportedError
from auditspec.estimator.compute import baseline
from auditspec.estimator.interventions import Arm
from auditspec.record.deviation import distance
from auditspec.record.format import Autocast

BF16 = torch.bfloat16
BF16_WHOLE = Autocast(dtype="bfloat16")
PLAN = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, autocast=BF16, microbatches=2),
    StagePlan("two", shift=1, autocast=BF16, clip_norm=0.3),
    StagePlan("three", shift=2, carry=True),
    StagePlan("four", optimizer="WarmLion", options={"lr": 0.01}, shift=3, autocast=BF16),
)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("build", [build_mlp32, build_tied32, build_dropped32])
def test_replay_under_autocast_is_retraining_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, PLAN, build, every)
    stages = recorded.trajectory.stages
    assert [s.header.autocast for s in stages] == [BF16_WHOLE, BF16_WHOLE, None, BF16_WHOLE]
    rerun = recorded.rerun()
    for stage in PLAN:
        found = replay(rerun, stages[-1].last, Arm.without(stage.id))
        wanted = parameters(retrain(recorded, stage.id))
        assert all(torch.equal(found.state.parameters[n], p) for n, p in wanted.items())
    for part, start, stop in recorded.trajectory.windows():
        assert distance(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def test_autocast_is_no_formality(tmp_path: Path) -> None:
    """The same plan without it ends elsewhere, so a re-run that ignored it would be caught."""
    cast = train(tmp_path / "cast", PLAN, build_mlp32)
    plain = [StagePlan(s.id, optimizer=s.optimizer, options=s.options, shift=s.shift) for s in PLAN]
    other = train(tmp_path / "plain", plain, build_mlp32)
    assert relative(parameters(cast.model), parameters(other.model)) > 1e-4


def test_another_precision_leaves_autocast_out(tmp_path: Path) -> None:
    cast = train(tmp_path, PLAN, build_mlp32)
    stage = cast.trajectory.stages[0]
    assert cast.rerun().autocast(stage) == BF16_WHOLE
    assert cast.rerun(dtype=torch.float32).autocast(stage) == BF16_WHOLE
    wide = cast.rerun(dtype=torch.float64)
    assert wide.autocast(stage) is None
    final = baseline(wide).final
    assert final.parameters["one.weight"].dtype == torch.float64
    off = relative(final.parameters, cast.trajectory.stages[-1].last.parameters)
    assert 1e-6 < off < 3e-2  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("build", [build_mlp32, build_tied32, build_dropped32])
def test_tangents_under_autocast_follow_those_without_within_its_rounding(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str
) -> None:
    """Linearised in float64 along the same recorded states; measured: 0.1 to 5 %.

    The largest is one AdamW entry whose second moment is next to nothing: there the step is steep.
    """
    options = {"lr": 0.1, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01}
    plan = tuple(
        StagePlan(s, 12, optimizer, options, shift=i, autocast=BF16)
        for i, s in enumerate(("one", "two"))
    )
    recorded = train(tmp_path, plan, build, every=4)
    final = recorded.trajectory.stages[-1].last
    for method in ("first-order", "displacement"):
        narrow, wide = (
            sweep(rerun, final, {"one": method})["one"].delta  # type: ignore[dict-item]
            for rerun in (recorded.rerun(), recorded.rerun(dtype=torch.float64))
        )
        assert 0 < relative(narrow, wide) < 0.1


def test_finite_differences_under_autocast_are_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN[:1] + SGD3[1:], build_mlp32)
    final = recorded.trajectory.stages[-1].last
    methods: dict[str, Any] = {"one": "first-order"}
    with pytest.raises(UnsupportedError, match=r"noise \(stage 'one'\)"):
        sweep(recorded.rerun(), final, methods, products="finite-difference")
    wide = recorded.rerun(dtype=torch.float64)
    differenced = sweep(wide, final, methods, products="finite-difference")["one"]
    exact = sweep(wide, final, methods)["one"]
    assert relative(differenced.delta, exact.delta) < 1e-4


def test_resuming_under_autocast_gives_the_same_record(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", PLAN, build_mlp32)
    for stage, step in (("one", 0), ("one", 3), ("two", 5), ("four", 1)):
        folder = tmp_path / f"{stage}{step}"
        with pytest.raises(KeyboardInterrupt):
            train(folder, PLAN, build_mlp32, stop_at=(stage, step))
        again = train(folder, PLAN, build_mlp32, resume=True)
        assert relative(parameters(again.model), parameters(whole.model)) == 0
        assert again.trajectory.header.stages == whole.trajectory.header.stages


def test_a_loss_of_the_loops_own_making_is_seen_in_its_forward_pass(tmp_path: Path) -> None:
    def step(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
        run.batch([0, 1])
        with torch.autocast("cpu", BF16):
            loss = cross_entropy(model, load_batch(data, [0, 1]))
        loss.backward()
        optimizer.step()

    assert one_stage(tmp_path, step).trajectory.stages[0].header.autocast == Autocast(
        dtype="bfloat16"
    )


def test_autocast_inside_the_objective_is_its_own_business(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_mlp32, objective=casting_objective)
    assert recorded.trajectory.stages[0].header.autocast is None
    rerun = recorded.rerun()
    for part, start, stop in recorded.trajectory.windows():
        assert distance(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def backward_inside(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    with torch.autocast("cpu", BF16):
        run.loss([0, 1]).backward()


def step_inside(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    with torch.autocast("cpu", BF16):
        loss = run.loss([0, 1])
    loss.backward()
    with torch.autocast("cpu", BF16):
        optimizer.step()


def changing(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    with torch.autocast("cpu", BF16):
        run.loss([0, 1], weight=0.5)
    run.loss([2, 3], weight=0.5)


def changing_dtype(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for dtype in (BF16, torch.float16):
        with torch.autocast("cpu", dtype):
            run.loss([0, 1], weight=0.5)


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (backward_inside, r"backward\(\) inside autocast"),
        (step_inside, "optimizer step inside autocast"),
        (changing, "no autocast, before autocast to bfloat16"),
        (changing_dtype, "autocast to float16 .*, before autocast to bfloat16"),
    ],
)
def test_autocast_that_cannot_be_repeated_is_refused(
    tmp_path: Path, misuse: Callable[..., None], said: str
) -> None:
    with pytest.raises(RecordError, match=said) as error:
        one_stage(tmp_path, misuse)
    assert error.value.remedy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_autocast_is_repeated_on_cuda(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, build_mlp32)
    final = recorded.trajectory.stages[-1].last
    there = replay(recorded.rerun(device="cuda"), final, Arm.without("one"))
    here = replay(recorded.rerun(), final, Arm.without("one"))
    assert relative(there.state.parameters, here.state.parameters) < 3e-2


# --- runs of these tests ------------------------------------------------------------------------


def casting_objective(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, token, y = batch
    with torch.autocast("cpu", BF16):
        logits = model(x.float(), token)
    return nn.functional.cross_entropy(logits.float(), y)


def one_stage(folder: Path, step: Callable[..., None]) -> Recorded:
    table().to_parquet(folder / "data.parquet")
    data = Dataset.open(folder / "data.parquet")
    model = build_mlp32()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Recorder(folder / "record", model, factory=build_mlp32, load_batch=load_batch) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=1) as run,
    ):
        step(run, model, optimizer, data)
    return opened(folder, model, data)


def opened(folder: Path, model: nn.Module, data: Dataset) -> Recorded:
    from auditspec.engine.loading import Functions
    from auditspec.record.trajectory import Trajectory

    functions = Functions(build_mlp32, load_batch, {"one": cross_entropy}, cross_entropy)
    trajectory = Trajectory.open(folder / "record")
    return Recorded(folder, model, trajectory, functions, {"data": data}, (), build_mlp32)
