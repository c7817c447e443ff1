"""Paired replay of arms that leave several stages out, against their exact replay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from estimates import paired_replay, replay
from torch import nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_normed,
    relative,
    train,
)

from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError, UnsupportedError
from auditspec.estimator.cache import FileJournal
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.estimator.paired.sampled_steps import schedule, smallest_budget
from auditspec.record.state import State

ADAMW = {"lr": 0.01}
PLAN = (
    StagePlan("one", 10, "AdamW", ADAMW, microbatches=2),
    StagePlan("two", 16, "AdamW", ADAMW, shift=1, clip_norm=0.3),
    StagePlan("three", 16, "Adam", ADAMW, shift=2, carry=True, split=True),
    StagePlan("four", 16, options={"lr": 0.1, "momentum": 0.9}, shift=3),
)
BASE = ("one.base",)
ADAPTED = (
    StagePlan("one", optimizer="AdamW", options=ADAMW),
    StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1, carry=True),
    StagePlan("three", 6, "AdamW", ADAMW, shift=2, carry=True, extend="add_adapters", frozen=BASE),
    StagePlan("four", shift=3, extend="new_head", frozen=BASE, lean=True, clip_norm=0.3),
    StagePlan("five", optimizer="WarmLion", options=ADAMW, shift=4, frozen=BASE),
)
ARMS = [
    Arm.without(*names.split())
    for names in ("one", "one two", "one three", "two four", "three four", "one two three four")
]


def final_of(recorded: Recorded) -> State:
    return recorded.trajectory.stages[-1].last


def close(left: Counterfactual, right: Counterfactual, tolerance: float) -> None:
    assert relative(left.state.parameters, right.state.parameters) <= tolerance
    assert list(left.path) == list(right.path)
    for stage, state in left.path.items():
        assert not state.optimizer_state
        assert relative(state.parameters, right.path[stage].parameters) <= tolerance
        for name, buffer in right.path[stage].buffers.items():
            assert torch.allclose(state.buffers[name].double(), buffer.double())


@pytest.mark.parametrize("every", [1, 7], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("plan", "build"),
    [(PLAN, build_dropped), (PLAN, build_normed), (ADAPTED, build_mlp), (ADAPTED, build_dropped)],
)
def test_every_step_sampled_is_replay(
    tmp_path: Path, plan: tuple[StagePlan, ...], build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, plan, build, every)
    final = final_of(recorded)
    found = paired_replay(recorded.rerun(), final, ARMS, gradients=10_000)
    assert list(found) == ARMS
    for arm, made in found.items():
        exact = replay(recorded.rerun(), final, arm)
        close(made, exact, 1e-9)
        assert (made.exact, made.gradients) == (True, exact.gradients)
        if made.path and list(made.path)[-1] == plan[-1].id:
            assert list(made.path.values())[-1] is made.state


@pytest.mark.parametrize("every", [1, 7], ids=["dense", "sparse"])
def test_a_budget_is_shared_by_all_arms_and_kept(tmp_path: Path, every: int) -> None:
    recorded = train(tmp_path, PLAN, build_mlp, every)
    final = final_of(recorded)
    least = smallest_budget(recorded.trajectory, ARMS)
    with pytest.raises(EstimationError, match="cannot be done with"):
        schedule(recorded.trajectory, ARMS, least - 1)
    for budget in range(least, 160, 15):
        rerun = recorded.rerun()
        found = paired_replay(rerun, final, ARMS, gradients=budget)
        assert rerun.gradients == schedule(recorded.trajectory, ARMS, budget).gradients <= budget
        assert sum(made.gradients for made in found.values()) == pytest.approx(rerun.gradients)
    group = Arm.without("one", "three")
    assert {j for arm, j in schedule(recorded.trajectory, [group], 99).sampled} == {1, 3}


def test_the_estimate_of_a_group_is_near_its_replay(tmp_path: Path) -> None:
    plan = tuple(
        StagePlan(name, 40, options={"lr": 0.03, "momentum": 0.5}, shift=i)
        for i, name in enumerate(("one", "two", "three", "four"))
    )
    recorded = train(tmp_path, plan, build_mlp, every=1)
    final, arm = final_of(recorded), Arm.without("one", "three")
    exact = replay(recorded.rerun(), final, arm)
    made = paired_replay(recorded.rerun(), final, [arm], gradients=30)[arm]
    assert not made.exact
    assert made.gradients <= 30
    assert relative(made.delta, exact.delta) < 0.1
    inside = relative(made.path["two"].parameters, exact.path["two"].parameters)
    assert 0 < inside < 0.1


@pytest.mark.parametrize("build", [build_dropped, build_normed])
@pytest.mark.parametrize("every", [1, 7], ids=["dense", "sparse"])
def test_an_interrupted_pass_goes_on_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    recorded = train(tmp_path, PLAN, build, every)
    final, budget = final_of(recorded), smallest_budget(recorded.trajectory, ARMS) + 20

    def run(rerun: Rerun, path: Path, visit: Callable[[int], None]) -> dict[Arm, Counterfactual]:
        return paired_replay(
            rerun,
            final,
            ARMS,
            gradients=budget,
            visit=visit,
            journal=FileJournal(path, share=0.0),
        )

    seen: list[int] = []
    whole = run(recorded.rerun(), tmp_path / "whole.safetensors", seen.append)
    for stop in range(2, len(seen), 17):
        made: list[int] = []

        def interrupt(gradients: int, stop: int = stop, made: list[int] = made) -> None:
            made.append(gradients)
            if len(made) > stop:
                raise KeyboardInterrupt

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(recorded.rerun(), path, interrupt)
        found = run(recorded.rerun(), path, lambda _: None)
        for arm, counterfactual in found.items():
            assert counterfactual.gradients == whole[arm].gradients
            close(counterfactual, whole[arm], 0)


def test_a_known_prefix_is_taken_up(tmp_path: Path) -> None:
    plan = (*PLAN[:2], StagePlan("three", 16, "Adam", ADAMW, shift=2, split=True), PLAN[3])
    recorded = train(tmp_path, plan, build_dropped, every=1)
    final, alone = final_of(recorded), Arm.without("one")
    known = paired_replay(recorded.rerun(), final, [alone], gradients=30)
    group = Arm.without("one", "three")
    assert schedule(recorded.trajectory, [group], 99, known=known).gradients == 16
    found = paired_replay(recorded.rerun(), final, [group], gradients=8, known=known)[group]
    assert found.gradients <= 8
    assert found.path["two"] is known[alone].path["two"]
    assert not found.exact
    whole = paired_replay(recorded.rerun(), final, [group], gradients=99, known=known)[group]
    assert not whole.exact  # what it goes on from is an estimate
    exact = paired_replay(recorded.rerun(), final, [alone], gradients=99)
    again = paired_replay(recorded.rerun(), final, [group], gradients=99, known=exact)[group]
    assert again.exact
    close(again, replay(recorded.rerun(), final, group), 1e-9)


def test_replacements_are_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN[:2], every=4)
    arm = Arm(replaced=frozenset({INITIAL}))
    with pytest.raises(UnsupportedError, match="no other initial weights"):
        paired_replay(recorded.rerun(), final_of(recorded), [arm], gradients=100)
