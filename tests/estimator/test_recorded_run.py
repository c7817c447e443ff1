"""The recorded run beside an estimate: one re-run gives the signals, and tells where the windows land."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of, paired_replay
from torch import nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_normed,
    build_routed,
    build_sparse,
    by_stage,
    train,
)

from auditspec.estimator.compute import with_twins
from auditspec.estimator.forecast import Pace
from auditspec.estimator.interface import Estimator, Terms
from auditspec.estimator.interventions import Arm
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget
from auditspec.estimator.plan import choose, prospects
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.subbatch.subbatch import SubBatchReplay
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
PLAN = (
    StagePlan("one", 8, options=MOMENTUM),
    StagePlan("two", 24, options=MOMENTUM, shift=1, clip_norm=0.3, microbatches=2),
    StagePlan("three", 24, "RMSprop", {"lr": 0.01}, shift=2, frozen=("one.bias",)),
    StagePlan("four", 24, options=MOMENTUM, shift=3, keep_gradients=True),
)
IDS = [stage.id for stage in PLAN]
Place = tuple[str, int, int]


class Landings:
    """The windows that a re-run passed, and where it landed."""

    def __init__(self) -> None:
        self.reached: dict[Place, State] = {}
        self.losses: dict[Place, dict[int, float]] = {}

    def passed(
        self,
        stage: StageTrajectory,
        start: int,
        stop: int,
        reached: State,
        losses: Mapping[int, float],
    ) -> None:
        assert (stage.id, start, stop) not in self.reached  # one re-run for all
        self.reached[stage.id, start, stop] = reached
        self.losses[stage.id, start, stop] = dict(losses)


def remade(recorded: Recorded) -> frozenset[str]:
    """Later stages whose gradients do not stand in the record."""
    none = RecordedRun()
    return frozenset(s.id for s in recorded.trajectory.stages[1:] if none.cost(s))


@pytest.mark.parametrize("every", [1, 6], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_routed])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_whoever_shares_a_re_run_does_not_pay_for_it(
    tmp_path: Path, build: Callable[[], nn.Module], every: int, shift: float
) -> None:
    plan = PLAN if build is not build_routed else tuple(s for s in PLAN if not s.frozen)
    recorded = train(tmp_path, plan, build, every)
    trajectory, ids = recorded.trajectory, [stage.id for stage in plan]
    final, stages = trajectory.stages[-1].last, remade(recorded)
    free = every == 1
    assert stages == (
        {s.id for s in plan if s.optimizer == "RMSprop"} if free else {*ids} - {"one"}
    )
    passes = sum(len(s.steps) * (1 + (s.id == "two")) for s in trajectory.stages if s.id in stages)
    budget = smallest_budget(trajectory, Arm.each(ids)) + 9
    expected = by_stage(
        paired_replay(recorded.rerun(), final, Arm.each(ids), gradients=budget, shift=shift)
    )
    options: Any = {"gradients": budget - passes, "shift": shift, "recorded": RecordedRun(stages)}
    found = by_stage(paired_replay(recorded.rerun(), final, Arm.each(ids), **options))
    paid, shared = (sum(c.gradients for c in made.values()) for made in (expected, found))
    assert paid - shared == pytest.approx(passes)
    assert shared <= budget - passes
    for stage, counterfactual in expected.items():
        ours, theirs = found[stage].state.parameters, counterfactual.state.parameters
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_normed])
@pytest.mark.parametrize("estimator", [PairedReplay(), SubBatchReplay()], ids=lambda e: e.name)
def test_an_estimate_and_its_twin_pass_every_window_once(
    tmp_path: Path, build: Callable[[], nn.Module], estimator: Estimator
) -> None:
    """And land where the engine lands that only re-runs windows, bit for bit; the losses too are those of the record."""
    recorded = train(tmp_path, PLAN, build, every=6)
    trajectory, landings = recorded.trajectory, Landings()
    arms = Arm.each(IDS[:-1])
    run = RecordedRun(remade(recorded), landings.passed)
    budget = estimator.least(trajectory, arms, Terms(recorded=run)) + 20
    context = context_of(recorded.rerun(), budget=budget, recorded=run)
    found = with_twins(estimator, context, arms)
    assert found.twins.keys() == found.estimates.keys()
    assert not found.refused
    later = [(s, a, b) for s, a, b in trajectory.windows() if s.id != "one"]
    assert list(landings.reached) == [(s.id, a, b) for s, a, b in later]
    rerun = recorded.rerun()
    for stage, start, stop in later:
        wanted = rerun.run(stage, stage.state(start), start, stop)
        reached = landings.reached[stage.id, start, stop]
        for ours, theirs in (
            (reached.parameters, wanted.parameters),
            (reached.buffers, wanted.buffers),
        ):
            assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
        losses = landings.losses[stage.id, start, stop]
        assert losses == {step.index: step.loss for step in stage.steps[start:stop]}


@pytest.mark.parametrize("estimator", [PairedReplay(), SubBatchReplay()], ids=lambda e: e.name)
def test_together_is_what_each_is_alone(tmp_path: Path, estimator: Estimator) -> None:
    recorded = train(tmp_path, PLAN, build_dropped, every=6)
    arms, run = Arm.each(IDS[:-1]), RecordedRun(remade(recorded))
    budget = estimator.least(recorded.trajectory, arms, Terms(recorded=run)) + 20
    twin = estimator.twin()
    assert twin is not None

    def context() -> Any:
        return context_of(recorded.rerun(), budget=budget, recorded=run)

    both = with_twins(estimator, context(), arms)
    alone = estimator.estimate(context(), arms), twin.estimate(context(), arms)
    for together, one in zip((both.estimates, both.twins), alone, strict=True):
        for arm, counterfactual in one.items():
            assert together[arm].gradients == pytest.approx(counterfactual.gradients)
            for name, tensor in counterfactual.state.parameters.items():
                assert torch.equal(together[arm].state.parameters[name], tensor)
    assert any(
        not torch.equal(both.twins[arm].state.parameters[name], tensor)
        for arm in arms
        for name, tensor in both.estimates[arm].state.parameters.items()
    )


def test_sparse_gradients_stay_sparse(tmp_path: Path) -> None:
    plan = tuple(
        StagePlan(name, 12, "SparseAdam", {"lr": 0.01}, shift=i)
        for i, name in enumerate(("one", "two"))
    )
    recorded = train(tmp_path, plan, build_sparse, every=4)
    (stage,) = recorded.trajectory.stages[1:]
    rerun = recorded.rerun()
    run = RecordedRun().enter(rerun, stage, 5)
    found = [run.make(step) for step in rerun.steps_of(stage)[5:]]
    assert len(found) == 7
    assert run.gradients == 7  # step 4, made again to get there, is nobody's
    assert all(signal.gradients["embed.weight"].is_sparse for signal in found)


def test_plan_and_forecast_count_what_is_shared(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, build_mlp, every=6)
    trajectory = recorded.trajectory
    shared, pace = RecordedRun(remade(recorded)), Pace.recorded(trajectory)
    least = smallest_budget(trajectory, Arm.each(IDS[:-1]), shared)
    assert smallest_budget(trajectory, Arm.each(IDS[:-1])) > least
    budget = least + 20
    choices = choose(trajectory, "auto", Terms(budget=budget, recorded=shared))
    sampling = schedule(trajectory, Arm.each(IDS[:-1]), budget, recorded=shared)
    assert not sampling.observed
    assert sum(c.gradients for c in choices) == pytest.approx(sampling.gradients, abs=0.01)
    rows = {}
    for given in (RecordedRun(), shared):
        terms = Terms(budget=budget, recorded=given)
        rows = {row.method: row for row in prospects(trajectory, terms, pace)}
        assert rows["paired-replay"].possible is (given is shared)
    paired = rows["paired-replay"].forecast
    assert paired is not None
    assert paired.gradients == sampling.gradients
    later = PairedReplay().forecast(
        trajectory, Arm.each(IDS[:-1]), Terms(budget=budget + 20, recorded=shared)
    )
    assert later.gradients > paired.gradients
    assert later.disk == paired.disk  # no gradient is stored
