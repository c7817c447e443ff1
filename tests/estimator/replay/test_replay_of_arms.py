"""Arms of several interventions against really retraining with torch.optim, interior included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from estimates import replay, replay_all
from torch import Tensor, nn
from training import (
    Recorded,
    Rows,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    relative,
    retrain,
    table,
    train,
)

from auditspec import Dataset
from auditspec.engine.references import References
from auditspec.errors import EstimationError, EvidenceError, RecordError
from auditspec.estimator.cache import FileJournal
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import INITIAL, RECORDED, Arm
from auditspec.estimator.prefixes import Prefixes

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3),
    StagePlan("three", split=True, shift=2, carry=True),
    StagePlan("four", optimizer="RMSprop", options={"lr": 0.01}, shift=3),
)
ADAMW = {"lr": 0.01}
BASE = ("one.base",)
ADAPTED = (
    StagePlan("one", optimizer="AdamW", options=ADAMW),
    StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1, carry=True),
    StagePlan("three", 6, "AdamW", ADAMW, shift=2, carry=True, extend="add_adapters", frozen=BASE),
    StagePlan("four", shift=3, extend="new_head", frozen=BASE, lean=True, clip_norm=0.3),
    StagePlan("five", optimizer="WarmLion", options=ADAMW, shift=4, frozen=BASE),
)
GROUPS = [
    Arm.without(*names.split())
    for names in ("one two", "one three", "two three", "one four", "two four", "one two three")
]


def same(found: Counterfactual, model: nn.Module, path: dict[str, dict[str, Tensor]]) -> None:
    """Bit for bit, at the end of training and of every stage that was trained."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    held = found.state.parameters | found.state.buffers
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[n], t) for n, t in tensors.items())
    assert list(found.path) == [stage for stage in path if stage in found.path]
    for stage, state in found.path.items():
        assert not state.optimizer_state
        for name, tensor in (state.parameters | state.buffers).items():
            assert torch.equal(path[stage][name], tensor)
    assert not found.state.optimizer_state


def close(left: Counterfactual, right: Counterfactual, tolerance: float = 1e-9) -> None:
    assert relative(left.delta, right.delta) <= tolerance
    assert list(left.path) == list(right.path)
    for stage, state in left.path.items():
        assert relative(state.parameters, right.path[stage].parameters) <= tolerance


def reference(folder: Path, rows: int = 7) -> Dataset:
    """Fewer rows than stages use: they come round again."""
    table(seed=5).head(rows).to_parquet(folder / "clean.parquet")
    return Dataset.open(folder / "clean.parquet")


def taking(data: Dataset, *stages: str) -> dict[str, Rows]:
    """What trains these stages on other rows: each example's, in the order in which they come."""

    def of(stage: str) -> Callable[[int], int]:
        order = np.random.default_rng([ord(c) for c in stage]).permutation(len(data.frame))
        seen: list[int] = []

        def row(example: int) -> int:
            if example not in seen:
                seen.append(example)
            return int(order[seen.index(example) % len(order)])

        return row

    return {stage: (data, of(stage)) for stage in stages}


# --- several stages left out ----------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 4], ids=["dense", "sparse"])
@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped, build_normed, build_mlp32])
def test_leaving_several_out_is_retraining_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module], every: int
) -> None:
    """The boundary of `three` carries the moments that `two` hands on, whether it is trained or not."""
    recorded = train(tmp_path, MIXED, build, every)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for arm in GROUPS:
        path: dict[str, dict[str, Tensor]] = {}
        model = retrain(recorded, arm.omitted, path=path)
        found = replay(rerun, final, arm)
        same(found, model, path)
        ids = [s.id for s in MIXED]
        later = ids[arm.first(ids) :]
        assert list(found.path) == [stage for stage in later if stage not in arm.omitted]
        if "four" in found.path:
            assert found.path["four"] is found.state


@pytest.mark.parametrize(
    "names",
    [
        "two three",
        "three",
        "one three",
        "three four",
        "two four",
        "one two three four",
        "four five",
    ],
)
@pytest.mark.parametrize("build", [build_mlp, build_dropped])
def test_a_stage_left_out_still_changes_the_model(
    tmp_path: Path, build: Callable[[], nn.Module], names: str
) -> None:
    recorded = train(tmp_path, ADAPTED, build, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    arm = Arm.without(*names.split())
    path: dict[str, dict[str, Tensor]] = {}
    model = retrain(recorded, arm.omitted, path=path)
    same(replay(rerun, final, arm), model, path)
    (found,) = replay_all(rerun, final, [arm], batched=False).values()
    same(found, model, path)


@pytest.mark.parametrize("vectorized", [True, False, None])
@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_normed])
def test_one_pass_makes_every_arm_and_what_they_share_once(
    tmp_path: Path, build: Callable[[], nn.Module], vectorized: bool | None
) -> None:
    recorded = train(tmp_path, MIXED, build, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    arms = [*GROUPS, *Arm.each(["one", "two", "four"])]
    found = replay_all(rerun, final, [*arms, arms[0]], batched=vectorized)
    spent = rerun.gradients
    assert list(found) == arms
    for arm in arms:
        alone = replay(rerun, final, arm)
        close(found[arm], alone, 0 if vectorized is False else 1e-9)
        assert found[arm].arm == arm
    # Stage two is trained without one; three without one, two, or both; four in six states.
    whole = 6 * (1 + 3 + 6)
    assert sum(made.gradients for made in found.values()) == pytest.approx(whole)
    assert spent >= whole
    if vectorized is False:
        assert spent == whole
    assert found[Arm.without("one")].gradients == 6 / 3 + 6 / 2 + 6


# --- clean evidence in place of a party's ---------------------------------------------------------

REPLACED = [
    Arm(replaced=frozenset({"one"})),
    Arm(replaced=frozenset({"two", "four"})),
    Arm(frozenset({"three"}), frozenset({"two"})),
    Arm(frozenset({"one"}), frozenset({"three"})),
    Arm(replaced=frozenset({INITIAL})),
    Arm(frozenset({"two"}), frozenset({INITIAL, "one"})),
    Arm(frozenset({"one"}), frozenset({INITIAL})),
]


def retrained(
    recorded: Recorded, arm: Arm, data: Dataset, weights: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
    path: dict[str, dict[str, Tensor]] = {}
    rows = taking(data, *(arm.replaced - {INITIAL}))
    start = weights if INITIAL in arm.replaced else None
    return retrain(recorded, arm.omitted, rows=rows, weights=start, path=path), path


def other_weights(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    torch.manual_seed(77)
    return {n: t + 0.1 if t.is_floating_point() else t for n, t in build().state_dict().items()}


@pytest.mark.parametrize("build", [build_mlp, build_tied, build_dropped, build_normed])
def test_replacing_is_retraining_on_the_reference_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    recorded = train(tmp_path, MIXED, build, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    data, weights = reference(tmp_path), other_weights(build)
    references = References(dict.fromkeys(("one", "two", "three", "four"), data), weights)
    together = replay_all(rerun, final, REPLACED, references=references, batched=False)
    batched = replay_all(rerun, final, REPLACED, references=references, batched=True)
    for arm in REPLACED:
        model, path = retrained(recorded, arm, data, weights)
        found = replay(rerun, final, arm, references=references)
        same(found, model, path)
        same(together[arm], model, path)
        close(batched[arm], found)
        assert found.displacement > 1e-3
        assert found.exact


def test_initial_weights_are_replaced_from_the_first_stage_on(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAPTED, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    weights, arm = other_weights(build_mlp), Arm(replaced=frozenset({INITIAL}))
    model, path = retrained(recorded, arm, recorded.datasets["data"], weights)
    found = replay(rerun, final, arm, references=References(weights=weights))
    same(found, model, path)
    assert list(found.path) == ["one", "two", "three", "four", "five"]


def test_a_replacement_without_a_reference_is_told(tmp_path: Path) -> None:
    recorded = train(tmp_path)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    for party in ("two", INITIAL):
        arm = Arm(replaced=frozenset({party}))
        for run in (
            lambda arm=arm: replay(rerun, final, arm),
            lambda arm=arm: replay_all(rerun, final, [arm]),
        ):
            with pytest.raises(EstimationError, match=f"'{party}' cannot be replaced"):
                run()
    with pytest.raises(RecordError, match="no stage 'zero'"):
        replay_all(rerun, final, [Arm.without("one", "zero")])
    with pytest.raises(ValueError, match="no counterfactual"):
        replay_all(rerun, final, [RECORDED])
    odd = References(weights={"one.weight": torch.ones(2)})
    with pytest.raises(EvidenceError, match="not those of the first stage's model"):
        replay(rerun, final, Arm(replaced=frozenset({INITIAL})), references=odd)


# --- what is known is not made again --------------------------------------------------------------

LONG = (
    StagePlan("one"),
    StagePlan("two", shift=1),
    StagePlan("three", shift=2, carry=True),
    StagePlan("four", optimizer="AdamW", options=ADAMW, shift=3),
    StagePlan("five", shift=4),
)


@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_normed])
def test_a_known_prefix_is_taken_up_bit_for_bit(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    recorded = train(tmp_path, LONG, build, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    known = replay_all(rerun, final, Arm.each(s.id for s in LONG), batched=False)
    # entry: behind the last stage whose end is shared, except where moments are carried on
    wanted = {
        Arm.without("one", "three"): 2,
        Arm.without("one", "four"): 3,
        Arm.without("one", "five"): 4,
        Arm.without("two", "five"): 4,
        Arm.without("three", "five"): 4,
        Arm.without("one", "two"): 0,
        Arm.without("two"): 5,
    }
    prefixes = Prefixes(recorded.trajectory, wanted, known)
    assert {arm: entry.stage for arm, entry in prefixes.entries.items()} == wanted
    before = rerun.gradients
    found = replay_all(rerun, final, [*wanted], batched=False, known=known)
    assert rerun.gradients - before == sum(prefixes.gradients().values())
    for arm, made in found.items():
        anew = replay(rerun, final, arm)
        close(made, anew, 0)
        close(replay(rerun, final, arm, known=known), anew, 0)
    assert found[Arm.without("two")].gradients == 0
    assert found[Arm.without("one", "five")].gradients == 0
    assert found[Arm.without("one", "four")].gradients == 6


def test_carried_moments_are_made_again(tmp_path: Path) -> None:
    """Without `one` and `four`, stage `three` goes on with moments that the path of `one` does not hold."""
    plan = (*LONG[:3], StagePlan("four", shift=3, carry=True), LONG[4])
    recorded = train(tmp_path, plan, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    known = replay_all(rerun, final, [Arm.without("one")], batched=False)
    arms = [Arm.without("one", "three"), Arm.without("one", "five")]
    prefixes = Prefixes(recorded.trajectory, arms, known)
    assert [prefixes.entries[arm].stage for arm in arms] == [0, 4]
    for arm in arms:
        close(replay(rerun, final, arm, known=known), replay(rerun, final, arm), 0)


def test_an_inexact_arm_is_not_taken_up(tmp_path: Path) -> None:
    recorded = train(tmp_path, LONG, every=4)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    alone, arm = replay(rerun, final, Arm.without("one")), Arm.without("one", "five")
    found = replay(rerun, final, arm, known={alone.arm: replace(alone, exact=False)})
    assert found.gradients == 18


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorized", [True, False])
def test_an_interrupted_pass_of_any_arms_goes_on_from_its_journal(
    tmp_path: Path, vectorized: bool
) -> None:
    recorded = train(tmp_path, MIXED, build_dropped, every=4)
    final, data = recorded.trajectory.stages[-1].last, reference(tmp_path)
    arms = [*GROUPS[:3], *REPLACED]
    references = References(
        dict.fromkeys(("one", "two", "three", "four"), data), other_weights(build_dropped)
    )

    def run(path: Path, visit: Callable[[int], None]) -> dict[Arm, Counterfactual]:
        return replay_all(
            recorded.rerun(),
            final,
            arms,
            batched=vectorized,
            visit=visit,
            journal=FileJournal(path, share=0.0),
            references=references,
        )

    made: list[int] = []
    whole = run(tmp_path / "whole.safetensors", made.append)
    for stop in range(3, sum(made), 13):
        told: list[int] = []

        def interrupt(gradients: int, stop: int = stop, told: list[int] = told) -> None:
            told.append(gradients)
            if sum(told) > stop:
                raise KeyboardInterrupt

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(path, interrupt)
        rest: list[int] = []
        found = run(path, rest.append)
        assert sum(rest) <= sum(made)
        assert [c.gradients for c in found.values()] == [c.gradients for c in whole.values()]
        for arm, counterfactual in found.items():
            close(counterfactual, whole[arm], 1e-9 if vectorized else 0)
    assert sum(rest) < sum(made) / 2
