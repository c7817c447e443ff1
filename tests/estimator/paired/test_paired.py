"""Paired replay against exact replay, which is tested against retraining."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from estimates import paired_replay, replay
from torch import Tensor, nn
from training import (
    Mlp,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_routed,
    build_tied,
    by_stage,
    relative,
    train,
)

from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired import twin as twins
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget
from auditspec.estimator.paired.twin import TWIN_FACTOR, steadied

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, microbatches=2),
    StagePlan("three", split=True, shift=2, carry=True),
    StagePlan("four", optimizer="RMSprop", options={"lr": 0.01}, shift=3),
)
"""Two optimizers whose moments hold the gradient, one that does not; clipping, groups, carrying."""


def long(optimizer: str = "SGD", steps: int = 24, **options: float) -> tuple[StagePlan, ...]:
    options = options or ({"lr": 0.1, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01})
    return tuple(
        StagePlan(name, steps=steps, optimizer=optimizer, options=options, shift=shift)
        for shift, name in enumerate(("one", "two", "three"))
    )


def estimate(
    recorded: Recorded, gradients: int, **options: float
) -> tuple[dict[str, Counterfactual], int]:
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    ids = [stage.id for stage in stages]
    found = by_stage(
        paired_replay(rerun, stages[-1].last, Arm.each(ids), gradients=gradients, **options)
    )
    return found, rerun.gradients


def exact(recorded: Recorded) -> dict[str, Counterfactual]:
    stages = recorded.trajectory.stages
    return {s.id: replay(recorded.rerun(), stages[-1].last, Arm.without(s.id)) for s in stages}


def whole_cost(recorded: Recorded) -> int:
    return int(sum(found.gradients for found in exact(recorded).values()))


def ids_of(recorded: Recorded) -> list[str]:
    return [stage.id for stage in recorded.trajectory.stages]


RATES = {"SGD": {"lr": 0.03, "momentum": 0.5}, "AdamW": {"lr": 0.01}}


class Frozen(Mlp):
    """A parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)


class Averaged(Mlp):
    """Batch normalisation with the cumulative average instead of a momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, momentum=None)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.two(torch.tanh(self.norm(self.one(x))))


class Drifting(Mlp):
    """A floating buffer with a rule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drift", torch.zeros(6))

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = torch.tanh(self.one(x))
        if self.training:
            self.drift.mul_(0.5).add_(hidden.detach().mean(0))
        return self.two(hidden)


def build_frozen() -> nn.Module:
    return Frozen().double()


def build_averaged() -> nn.Module:
    return Averaged().double()


def build_drifting() -> nn.Module:
    return Drifting().double()


BUILDS = [
    build_mlp,
    build_tied,
    build_dropped,
    build_normed,
    build_averaged,
    build_frozen,
    build_routed,
    build_mlp32,
]


@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", BUILDS)
def test_every_step_sampled_is_replay(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, MIXED, build, every)
    found, computed = estimate(recorded, 1000)
    tolerance = 1e-4 if build is build_mlp32 else 1e-9
    assert computed == whole_cost(recorded)
    for stage, replayed in exact(recorded).items():
        assert found[stage].exact
        assert relative(found[stage].state.parameters, replayed.state.parameters) < tolerance
        assert found[stage].gradients == replayed.gradients
        for name, buffer in replayed.state.buffers.items():
            assert torch.allclose(found[stage].state.buffers[name].double(), buffer.double())


@pytest.mark.parametrize("build", [build_mlp, build_mlp32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "ASGD"]
)
def test_every_step_sampled_is_replay_for_every_optimizer(
    tmp_path: Path, name: str, build: Callable[[], nn.Module]
) -> None:
    plan = (
        StagePlan("one"),
        StagePlan("two", optimizer=name, options={"lr": 0.01}, shift=1),
        StagePlan("three", optimizer=name, options={"lr": 0.01}, shift=2, carry=True),
    )
    recorded = train(tmp_path, plan, build, every=1)
    found, _ = estimate(recorded, 1000)
    for stage, replayed in exact(recorded).items():
        wanted = 1e-9 if build is build_mlp else 1e-4
        assert relative(found[stage].state.parameters, replayed.state.parameters) < wanted


def test_every_step_but_one_sampled_comes_close(tmp_path: Path) -> None:
    """One step less than everything: nearly exact, and not called so."""
    recorded = train(tmp_path, long(), every=1)
    found, computed = estimate(recorded, whole_cost(recorded) - 1)
    assert computed == whole_cost(recorded) - 1
    assert not all(f.exact for f in found.values())
    for stage, replayed in exact(recorded).items():
        if stage != "three":
            assert relative(found[stage].delta, replayed.delta) < 0.02


@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_mlp, build_normed])
def test_the_budget_is_kept_and_the_forecast_is_what_is_counted(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, MIXED, build, every)
    ids, least = ids_of(recorded), smallest_budget(recorded.trajectory, Arm.each(ids_of(recorded)))
    whole = whole_cost(recorded)
    assert least < whole
    for budget in range(least, whole + 3, 3):
        found, computed = estimate(recorded, budget)
        assert computed <= budget
        assert computed == schedule(recorded.trajectory, Arm.each(ids), budget).gradients
        assert sum(f.gradients for f in found.values()) == pytest.approx(computed)


def test_recorded_gradients_are_free_only_where_the_moments_of_every_step_were_kept(
    tmp_path: Path,
) -> None:
    """Two samples a later stage and arm; sparse states, and RMSprop, add a pass over the stage."""
    dense = train(tmp_path / "dense", long(steps=10), every=1)
    sparse = train(tmp_path / "sparse", long(steps=10), every=4)
    other = train(tmp_path / "other", long("RMSprop", steps=10), every=1)
    plain = train(tmp_path / "plain", long(steps=10, lr=0.1), every=1)
    costs = [
        smallest_budget(r.trajectory, Arm.each(["one", "two"]))
        for r in (dense, sparse, other, plain)
    ]
    assert costs == [6, 6 + 20, 6 + 20, 6 + 20]
    assert smallest_budget(dense.trajectory, Arm.each(["three"])) == 0


def test_signals_read_off_the_record_are_those_of_a_rerun(tmp_path: Path) -> None:
    """The same steps sampled with recorded gradients from either source give the same estimate."""
    plan = [StagePlan(p.id, 12, "AdamW", {"lr": 0.01}, clip_norm=0.5, shift=i) for i, p in
            enumerate(long())]  # fmt: skip
    dense = train(tmp_path / "dense", plan, build_normed, every=1)
    sparse = train(tmp_path / "sparse", plan, build_normed, every=5)
    here, _ = estimate(dense, 9)
    there, _ = estimate(sparse, 9 + 24)
    for stage, found in here.items():
        assert relative(found.state.parameters, there[stage].state.parameters) < 1e-7
        assert relative(found.state.buffers, there[stage].state.buffers) < 1e-7


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_normed, build_tied])
def test_the_error_falls_as_the_budget_grows(
    tmp_path: Path, build: Callable[[], nn.Module], optimizer: str
) -> None:
    recorded = train(tmp_path, long(optimizer, 32, **RATES[optimizer]), build, every=1)
    truth, whole = exact(recorded), whole_cost(recorded)

    def error(part: float) -> float:
        found, _ = estimate(recorded, int(part * whole))
        return math.hypot(*(relative(found[s].delta, truth[s].delta) for s in ("one", "two")))

    few, most = error(0.15), error(0.9)
    assert most < 0.2 * few
    assert most < 0.1  # predicting zero scores 1.4


def test_the_control_variate_earns_its_place(tmp_path: Path) -> None:
    """At a quarter of the gradients, closer to the counterfactual than the recorded end is by far."""
    recorded = train(tmp_path, long(steps=32, lr=0.01, momentum=0.9), every=1)
    truth = exact(recorded)
    found, _ = estimate(recorded, int(0.25 * whole_cost(recorded)))
    for stage in ("one", "two"):
        assert relative(found[stage].delta, truth[stage].delta) < 0.3  # predicting zero scores 1


def test_running_statistics_come_closer_as_the_budget_grows(tmp_path: Path) -> None:
    """At half of the gradients they may still be off as far as the stage moved them (docs/method.md)."""
    recorded = train(tmp_path, long("AdamW", 32), build_normed, every=1)
    truth, final = exact(recorded), recorded.trajectory.stages[-1].last

    def off(part: float, stage: str) -> float:
        found, _ = estimate(recorded, int(part * whole_cost(recorded)))
        ours, theirs = found[stage].state.buffers, truth[stage].state.buffers
        assert torch.equal(ours["norm.num_batches_tracked"], theirs["norm.num_batches_tracked"])
        floating = [n for n, b in theirs.items() if b.is_floating_point()]
        moved = sum(float((final.buffers[n] - theirs[n]).square().sum()) for n in floating)
        return sum(float((ours[n] - theirs[n]).square().sum()) for n in floating) / moved

    for stage in ("one", "two"):
        assert off(0.9, stage) < min(0.2, off(0.5, stage))
        assert off(1.0, stage) < 1e-18


def test_the_estimate_is_deterministic_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED, build_dropped, every=1)
    before = torch.get_rng_state()
    here, _ = estimate(recorded, 30)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    there, _ = estimate(recorded, 30)
    for stage, found in here.items():
        for name, p in found.state.parameters.items():
            assert torch.equal(p, there[stage].state.parameters[name])


def test_starts_and_the_last_stage(tmp_path: Path) -> None:
    recorded = train(tmp_path, long(), every=1)
    stages = recorded.trajectory.stages
    start = stages[1].first
    moved = type(start)({n: p + 0.1 for n, p in start.parameters.items()}, start.buffers)
    final = stages[-1].last
    found = by_stage(
        paired_replay(
            recorded.rerun(),
            final,
            Arm.each(["two", "three"]),
            gradients=1000,
            starts={"two": moved},
        )
    )
    replayed = replay(recorded.rerun(), final, Arm.without("two"), starts={"two": moved})
    assert relative(found["two"].state.parameters, replayed.state.parameters) < 1e-9
    assert found["three"].exact
    assert found["three"].gradients == 0
    assert relative(found["three"].state.parameters, stages[2].first.parameters) == 0


def test_progress_sees_every_gradient(tmp_path: Path) -> None:
    recorded = train(tmp_path, long(steps=10), every=4)
    seen: list[int] = []
    rerun = recorded.rerun()
    paired_replay(
        rerun,
        recorded.trajectory.stages[-1].last,
        [Arm.without("one")],
        gradients=30,
        visit=seen.append,
    )
    assert sum(seen) == rerun.gradients == 20


def test_a_budget_too_small_is_refused_with_the_smallest_that_works(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED, every=4)
    least = smallest_budget(recorded.trajectory, Arm.each(ids_of(recorded)))
    with pytest.raises(EstimationError, match="cannot be done with") as refused:
        estimate(recorded, least - 1)
    assert f"{least:,}" in refused.value.remedy
    assert estimate(recorded, least)[1] == least


def test_missing_steps_and_unknown_buffers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EstimationError, match="stage 'two' was recorded without its steps"):
        estimate(train(tmp_path / "boundaries", long(), every="boundaries"), 100)
    with pytest.raises(UnsupportedError, match="drift"):
        estimate(train(tmp_path / "drifting", long(), build_drifting), 1000)


def read(recorded: Recorded, found: Counterfactual) -> np.ndarray:
    """Logit of class 0 on 48 rows."""
    model = recorded.build()
    model.load_state_dict(found.state.parameters | found.state.buffers)
    model.eval()
    batch = recorded.functions.load_batch(recorded.datasets["data"], range(48))
    with torch.no_grad():
        return recorded.functions.predict(model, batch)[:, 0].numpy()


@pytest.mark.parametrize("part", [0.2, 0.5])
def test_the_twin_covers_the_error_and_is_wide_where_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    """Adam's large steps make the interpolation bad at a fifth of the gradients, and it says so."""
    recorded = train(tmp_path, long("AdamW", 32, lr=0.05), every=1)
    truth, budget = exact(recorded), int(part * whole_cost(recorded))
    monkeypatch.setattr(twins, "ASTRAY", np.inf)  # the twin covers what is given up otherwise
    one, two = estimate(recorded, budget)[0], estimate(recorded, budget, shift=0.5)[0]
    for stage in ("one", "two"):
        effects, twin = read(recorded, one[stage]), read(recorded, two[stage])
        error = float(np.sqrt(np.mean((effects - read(recorded, truth[stage])) ** 2)))
        estimated = TWIN_FACTOR * float(np.sqrt(np.mean((effects - twin) ** 2)))
        assert error < estimated
        if part == 0.2:
            assert estimated > 0.1


def test_the_twin_samples_other_steps_at_the_same_cost(tmp_path: Path) -> None:
    recorded = train(tmp_path, long(steps=40), every=1)
    one = schedule(recorded.trajectory, Arm.each(["one", "two"]), 30)
    two = schedule(recorded.trajectory, Arm.each(["one", "two"]), 30, 0.5)
    assert abs(one.gradients - two.gradients) <= 3
    for key, steps in one.sampled.items():
        assert steps[:2] == two.sampled[key][:2] == (0, 1)
        assert len({*steps[2:]} & {*two.sampled[key][2:]}) < len(steps) / 2


def test_paired_replay_is_itself_on_every_device(tmp_path: Path, device: str) -> None:
    """With every step sampled exact replay, and with few what it is on the CPU."""
    recorded = train(tmp_path, MIXED, every=1)
    final, arms = recorded.trajectory.stages[-1].last, Arm.each(["one"])
    whole = replay(recorded.rerun(), final, arms[0])
    for gradients in (int(whole.gradients), 20):
        there = paired_replay(recorded.rerun(device=device), final, arms, gradients=gradients)
        here = (
            whole
            if gradients > 20
            else paired_replay(recorded.rerun(), final, arms, gradients=20)[arms[0]]
        )
        assert there[arms[0]].exact == (here is whole)
        assert relative(there[arms[0]].state.parameters, here.state.parameters) < 1e-9


def test_no_error_is_small_by_chance_alone() -> None:
    sizes = np.array([1.0, 10.0, 4.0, 2.0, 0.0])
    errors = np.array([0.2, 0.0, 4.0, 0.4, 0.0])  # beside the sizes: 0.2, 0, 1, 0.2, and none
    found = steadied(errors, sizes)
    assert found == pytest.approx([0.2, 0.2 * 10, 4.0, 0.4, 0.0])
    assert steadied(np.array([0.1]), np.array([0.0])) == pytest.approx([0.1])
    assert steadied(np.array([]), np.array([])).size == 0
