"""Every method's estimates through the store: taken up again, kept, and their journals forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of, store_in
from training import StagePlan, build_dropped, table, train

from auditspec import Dataset
from auditspec.engine.references import References
from auditspec.engine.rerun import Rerun
from auditspec.errors import UnsupportedError
from auditspec.estimator.cache import Store
from auditspec.estimator.compute import baseline, chosen_counterfactuals, counterfactuals
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.estimator.linear.tangent import Displacement
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.plan import choose
from auditspec.estimator.replay.replay import Replay
from auditspec.progress import SILENT, Progress

PLAN = tuple(
    StagePlan(name, 12, options={"lr": 0.1, "momentum": 0.9}, shift=i)
    for i, name in enumerate(("one", "two", "three"))
)
BUDGET = 34


class Interrupting(Progress):
    """Stops where a number of units was made."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        def advance(units: int) -> None:
            self.left -= units
            if self.left < 0:
                raise KeyboardInterrupt

        yield advance


def journals(folder: Path) -> list[Path]:
    return list(folder.glob("*.journal.safetensors"))


def made(
    rerun: Rerun, method: str, store: Store | None, progress: Progress = SILENT
) -> dict[str, dict[str, torch.Tensor]]:
    budget = BUDGET if method == "paired-replay" else None
    context = context_of(rerun, budget=budget, progress=progress, store=store)
    choices = {c.stage: c.estimator for c in choose(rerun.trajectory, method, context)}
    context = replace(context, run=baseline(rerun, progress=progress, store=store))
    found = chosen_counterfactuals(context, choices)
    named = [(c.stage, c) for c in found.estimates.values()]
    named += [(f"twin of {twin.stage}", twin) for twin in found.twins.values()]
    return {stage: c.delta for stage, c in named}


@pytest.mark.parametrize(
    ("method", "after"),
    [
        ("replay", 20),
        ("paired-replay", 20),
        ("paired-replay", BUDGET),
        ("displacement", 15),
        ("first-order", 30),
    ],
)
def test_an_interrupted_estimate_is_taken_up_and_its_journal_forgotten(
    tmp_path: Path, method: str, after: int
) -> None:
    recorded, folder = train(tmp_path, PLAN, build_dropped, every=4), tmp_path / "cache"
    whole = made(recorded.rerun(), method, None)
    store = store_in(folder)
    with pytest.raises(KeyboardInterrupt):
        made(recorded.rerun(), method, store, Interrupting(after))
    (journal,) = journals(folder)
    with pytest.raises(KeyboardInterrupt):  # another record's estimate begins one of its own
        made(recorded.rerun(), method, store_in(folder, record="sha256:9"), Interrupting(after))
    assert len(journals(folder)) == 2
    found = made(recorded.rerun(), method, store)
    assert not journal.exists()
    assert found.keys() == whole.keys()
    for stage, delta in found.items():
        assert all(torch.equal(delta[name], tensor) for name, tensor in whole[stage].items())
    rerun = recorded.rerun()
    made(rerun, method, store)
    assert rerun.gradients == 0


def test_a_repeated_run_is_kept_by_its_journal(tmp_path: Path) -> None:
    recorded, folder = train(tmp_path, PLAN, build_dropped, every=4), tmp_path / "cache"
    store, rerun = store_in(folder, dtype="float32"), recorded.rerun(dtype=torch.float32)
    whole = baseline(rerun)
    with pytest.raises(KeyboardInterrupt):
        baseline(recorded.rerun(dtype=torch.float32), progress=Interrupting(30), store=store)
    again = recorded.rerun(dtype=torch.float32)
    found = baseline(again, store=store)
    assert again.gradients < rerun.gradients
    assert found.starts.keys() == whole.starts.keys()
    assert list(found.path) == list(whole.path) == ["one", "two", "three"]
    for name, state in whole.path.items():
        assert all(
            torch.equal(found.path[name].parameters[n], t) for n, t in state.parameters.items()
        )
    assert torch.equal(
        found.path["three"].parameters["one.weight"], whole.final.parameters["one.weight"]
    )
    for name, tensor in whole.final.parameters.items():
        assert torch.equal(found.final.parameters[name], tensor)
    assert len(journals(folder)) == 1


GROUP = Arm.without("one", "three")
SWAPPED = Arm(replaced=frozenset({"two"}))


def clean(folder: Path, seed: int) -> Dataset:
    table(seed).to_parquet(folder / f"{seed}.parquet")
    return Dataset.open(folder / f"{seed}.parquet")


def equal(left: Counterfactual, right: Counterfactual) -> bool:
    states = [(left.state, right.state), *((s, right.path[n]) for n, s in left.path.items())]
    return left.path.keys() == right.path.keys() and all(
        torch.equal(ours.parameters[name], tensor)
        for ours, theirs in states
        for name, tensor in theirs.parameters.items()
    )


def test_further_arms_are_computed_taken_up_and_kept(tmp_path: Path) -> None:
    recorded, folder = train(tmp_path, PLAN, build_dropped, every=4), tmp_path / "cache"
    store, replay = store_in(folder), Replay()
    references = References({"two": clean(tmp_path, 5)})
    alone = counterfactuals(replay, context_of(recorded.rerun(), store=store), Arm.each(["one"]))
    options: dict[str, Any] = {"references": references, "known": alone}
    whole = counterfactuals(replay, context_of(recorded.rerun(), **options), [GROUP, SWAPPED])
    assert list(whole) == [GROUP, SWAPPED]
    assert [arm.gradients for arm in whole.values()] == [0, 24]  # the group's path is known
    options["store"] = store
    for stop in (5, 20):
        context = context_of(recorded.rerun(), progress=Interrupting(stop), **options)
        with pytest.raises(KeyboardInterrupt):
            counterfactuals(replay, context, [GROUP, SWAPPED])
    assert len(journals(folder)) == 1
    context = context_of(recorded.rerun(), **options)
    found = counterfactuals(replay, context, [GROUP, SWAPPED])
    assert context.engine.gradients < 24
    assert not journals(folder)
    for again in (found, counterfactuals(replay, context, [SWAPPED, GROUP])):
        assert all(equal(again[arm], counterfactual) for arm, counterfactual in whole.items())
    assert all(arm.cached for arm in again.values())
    other = replace(context, references=References({"two": clean(tmp_path, 6)}))
    moved = counterfactuals(replay, other, [SWAPPED])[SWAPPED]
    assert not moved.cached
    assert not equal(moved, whole[SWAPPED])


def test_estimated_arms_go_by_what_they_go_on_from(tmp_path: Path) -> None:
    recorded, folder = train(tmp_path, PLAN, every=1), tmp_path / "cache"
    context, paired = context_of(recorded.rerun(), store=store_in(folder)), PairedReplay()
    four = Arm.without("one", "two")
    estimates = []
    for budget in (16, 24):  # other estimates without `one` are other beginnings
        known = counterfactuals(paired, replace(context, budget=budget), Arm.each(["one"]))
        given = replace(context, budget=10, known=known)
        found = counterfactuals(paired, given, [GROUP, four])
        again = counterfactuals(paired, given, [GROUP, four])
        assert [c.cached for c in (*found.values(), *again.values())] == [False] * 2 + [True] * 2
        assert all(equal(again[arm], c) for arm, c in found.items())
        estimates.append(found)
    assert not equal(estimates[0][GROUP], estimates[1][GROUP])
    assert equal(estimates[0][four], estimates[1][four])
    twin = counterfactuals(paired.twin(), context_of(recorded.rerun(), budget=8), [four])
    assert not equal(twin[four], estimates[0][four])


def test_arms_that_an_estimator_cannot_make_are_refused_by_name(tmp_path: Path) -> None:
    context = context_of(train(tmp_path, PLAN).rerun())
    with pytest.raises(UnsupportedError, match="displacement leaves out one stage at a time"):
        counterfactuals(Displacement(), context, [GROUP])
    with pytest.raises(UnsupportedError, match="paired-replay follows no stage on other data"):
        counterfactuals(PairedReplay(), context, [SWAPPED])
