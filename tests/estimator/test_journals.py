"""An interrupted estimate goes on from its journal, and ends bitwise as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of, krylov, paired_replay, sweep
from said import said
from torch import nn
from training import (
    SGD3,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_normed,
    build_sparse,
    by_stage,
    train,
)

from auditspec.engine.rerun import Rerun
from auditspec.estimator.cache import FileJournal, Journal
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.segments import Declared
from auditspec.estimator.replay.replay import repeated
from auditspec.estimator.simulated.simulated import SimulatedReplay
from auditspec.record.state import State
from auditspec.schedules import Constant

Visit = Callable[[int], None]
Estimate = Callable[[Rerun, Journal, Visit], dict[str, Counterfactual]]

LONG = (
    StagePlan("one", 10, "AdamW", {"lr": 0.01}, microbatches=2),
    StagePlan("two", 16, "AdamW", {"lr": 0.01}, shift=1, clip_norm=0.3),
    StagePlan("three", 16, "Adam", {"lr": 0.01}, shift=2, carry=True, split=True),
    StagePlan("four", 16, options={"lr": 0.1, "momentum": 0.9}, shift=3),
)
IDS = [stage.id for stage in LONG]
SGD = tuple(
    StagePlan(name, 8, options={"lr": 0.1, "momentum": 0.9}, shift=i, carry=i == 2)
    for i, name in enumerate(IDS)
)


def nothing(_: int) -> None:
    """Watch no step."""


class Nowhere:
    """Counts what would have been noted."""

    due = True
    notes = 0

    def load(self) -> None:
        pass

    def save(self, position: Any, states: Any) -> None:
        self.notes += 1


def interrupted(
    recorded: Recorded, estimate: Estimate, path: Path, stop: int
) -> tuple[dict[str, Counterfactual], int]:
    """Stop before the visit after `stop`, go on; gives also the gradients of the second run."""
    made = 0

    def interrupt(_: int) -> None:
        nonlocal made
        made += 1
        if made > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate(recorded.rerun(), FileJournal(path, share=0.0), interrupt)
    rerun = recorded.rerun()
    return estimate(rerun, FileJournal(path, share=0.0), nothing), rerun.gradients


def same(left: State, right: State) -> None:
    for ours, theirs in ((left.parameters, right.parameters), (left.buffers, right.buffers)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def check(recorded: Recorded, estimate: Estimate, folder: Path, stride: int) -> None:
    """Interrupt at every `stride`-th visit in turn."""
    visits, nowhere = 0, Nowhere()

    def count(_: int) -> None:
        nonlocal visits
        visits += 1

    rerun = recorded.rerun()
    whole = estimate(rerun, nowhere, count)
    assert nowhere.notes > 2
    spent = []
    for stop in range(1, visits, stride):
        found, gradients = interrupted(recorded, estimate, folder / f"{stop}.safetensors", stop)
        spent.append(gradients)
        assert found.keys() == whole.keys()
        for stage, counterfactual in found.items():
            same(counterfactual.state, whole[stage].state)
            assert counterfactual.gradients == whole[stage].gradients
            assert counterfactual.diagnostics == whole[stage].diagnostics
            assert (counterfactual.exact, said(counterfactual.notes)) == (
                whole[stage].exact,
                said(whole[stage].notes),
            )
    assert spent[-1] < rerun.gradients / 2  # it did not begin anew


@pytest.mark.parametrize("every", [1, 7], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_dropped, build_normed])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_paired_replay_goes_on_from_the_last_window(
    tmp_path: Path, every: int, build: Callable[[], nn.Module], shift: float
) -> None:
    recorded = train(tmp_path, LONG, build, every)
    final, budget = recorded.trajectory.stages[-1].last, 36 if every == 1 else 84

    def estimate(rerun: Rerun, journal: Journal, visit: Visit) -> dict[str, Counterfactual]:
        options: Any = {"gradients": budget, "shift": shift, "visit": visit}
        return by_stage(paired_replay(rerun, final, Arm.each(IDS), journal=journal, **options))

    check(recorded, estimate, tmp_path, 9)


def test_paired_replay_notes_sparse_gradients(tmp_path: Path) -> None:
    plan = tuple(
        StagePlan(name, 12, "SparseAdam", {"lr": 0.01}, shift=i) for i, name in enumerate(IDS[:3])
    )
    recorded = train(tmp_path, plan, build_sparse, every=4)
    final = recorded.trajectory.stages[-1].last

    def estimate(rerun: Rerun, journal: Journal, visit: Visit) -> dict[str, Counterfactual]:
        return by_stage(
            paired_replay(
                rerun, final, Arm.each(IDS[:2]), gradients=34, visit=visit, journal=journal
            )
        )

    check(recorded, estimate, tmp_path, 9)


@pytest.mark.parametrize("every", [1, 3], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("method", "products"),
    [("displacement", "exact"), ("first-order", "exact"), ("displacement", "finite-difference")],
)
def test_a_sweep_goes_on_from_the_last_recorded_state(
    tmp_path: Path, every: int, method: Any, products: Any
) -> None:
    recorded = train(tmp_path, SGD, build_dropped, every)
    final = recorded.trajectory.stages[-1].last

    def estimate(rerun: Rerun, journal: Journal, visit: Visit) -> dict[str, Counterfactual]:
        methods = dict.fromkeys(IDS, method)
        return sweep(rerun, final, methods, visit=visit, products=products, journal=journal)

    check(recorded, estimate, tmp_path, 4)


def test_krylov_goes_on_from_the_last_stage(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD, build_mlp, every=4)
    final = recorded.trajectory.stages[-1].last

    def estimate(rerun: Rerun, journal: Journal, visit: Visit) -> dict[str, Counterfactual]:
        return krylov(rerun, final, IDS, visit=visit, journal=journal, vectors=4)

    check(recorded, estimate, tmp_path, 3)


def test_simulated_replay_goes_on_from_the_last_pass(tmp_path: Path) -> None:
    recorded = train(tmp_path, LONG, build_normed, every="boundaries")
    known = dict.fromkeys(IDS, Declared(Constant(), batch=8))

    def estimate(rerun: Rerun, journal: Journal, visit: Visit) -> dict[str, Counterfactual]:
        context = context_of(rerun, declared=known, journal=journal, visit=visit, budget=120)
        return by_stage(SimulatedReplay().estimate(context, Arm.each(IDS)))

    check(recorded, estimate, tmp_path, 9)


def test_a_repeated_run_goes_on_from_the_last_window(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_dropped)

    def run(path: Path, visit: Visit = nothing) -> tuple[Baseline, int]:
        rerun = recorded.rerun(dtype=torch.float32)
        journal = FileJournal(path, share=0.0)
        return repeated(rerun, visit, journal), rerun.gradients

    whole, gradients = run(tmp_path / "whole.safetensors")
    assert whole.path.keys() == whole.starts.keys() == {"one", "two", "three"}
    for stop in range(1, gradients):
        made: list[int] = []

        def interrupt(steps: int, stop: int = stop, made: list[int] = made) -> None:
            made.append(steps)
            if len(made) > stop:
                raise KeyboardInterrupt

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(path, interrupt)
        found, again = run(path)
        assert again == gradients - stop // 2 * 2
        same(found.final, whole.final)
        for ours, theirs in ((found.starts, whole.starts), (found.path, whole.path)):
            assert ours.keys() == theirs.keys()
            for stage, state in ours.items():
                same(state, theirs[stage])
        kept, more = run(path)
        assert more == 0  # its journal is the run
        same(kept.final, whole.final)
        same(kept.path["three"], whole.final)
