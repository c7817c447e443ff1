"""Sub-batch replay against exact replay, which is tested against retraining, and against a plain loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import context_of
from torch import Tensor
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_normed,
    build_tied,
    parameters,
    predict,
    relative,
    retrain,
    train,
)

from auditspec.errors import BudgetError, UnsupportedError
from auditspec.estimator.counterfactual import Counterfactuals
from auditspec.estimator.forecast import replay_cost
from auditspec.estimator.interventions import Arm
from auditspec.estimator.recorded_run import RecordedRun
from auditspec.estimator.subbatch.parts import parts_of
from auditspec.estimator.subbatch.shares import Shares
from auditspec.estimator.subbatch.subbatch import SubBatchReplay

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, microbatches=2),
    StagePlan("three", split=True, shift=2, carry=True),
    StagePlan("four", optimizer="RMSprop", options={"lr": 0.01}, shift=3),
)
"""Two optimizers whose moments hold the gradient, one that does not; clipping, groups, carrying."""
ADAM = tuple(
    StagePlan(name, 20, "AdamW", {"lr": 0.01}, shift=i)
    for i, name in enumerate(("one", "two", "three"))
)


def arms_of(recorded: Recorded) -> list[Arm]:
    return Arm.each([stage.id for stage in recorded.plan[:-1]])


def estimate(
    recorded: Recorded, share: float | None, device: str = "cpu", **options: Any
) -> Counterfactuals:
    whole = sum(replay_cost(recorded.trajectory.stages).values())
    budget = None if share is None else int(share * whole)
    context = context_of(recorded.rerun(device=device), budget=budget)
    return SubBatchReplay(**options).estimate(context, arms_of(recorded))


def loss_of(model: Any, batch: Any) -> Tensor:
    return torch.nn.functional.cross_entropy(predict(model, batch), batch[2])


@pytest.mark.parametrize("build", [build_mlp, build_dropped, build_tied, build_normed])
def test_with_every_row_it_is_retraining(tmp_path: Path, build: Any, device: str) -> None:
    if device != "cpu" and build is build_dropped:
        pytest.skip("dropout draws other numbers on another device")
    recorded = train(tmp_path, MIXED, build, every=1)
    for arm, c in estimate(recorded, None, device).items():
        assert c.exact
        assert c.beyond == 0
        assert relative(c.state.parameters, parameters(retrain(recorded, arm.stage))) < 1e-9


def test_it_is_the_loop_that_its_docstring_describes(tmp_path: Path, device: str) -> None:
    """Plain torch: parts of the minibatches, the recorded run beside, the coefficient fitted along the way."""
    recorded = train(tmp_path, ADAM, build_mlp, every=1)
    budget = int(0.6 * sum(replay_cost(recorded.trajectory.stages).values()))
    context = context_of(recorded.rerun(device=device), budget=budget)
    arms = arms_of(recorded)
    share = Shares(recorded.trajectory, arms, context).within(budget)
    assert 0.2 < share < 0.9
    found = SubBatchReplay().estimate(context, arms)
    load, data, stages = (
        recorded.functions.load_batch,
        recorded.datasets["data"],
        recorded.trajectory.stages,
    )
    for number, arm in enumerate(arms):
        theta = {n: t.clone() for n, t in stages[number].first.parameters.items()}
        model, beside = build_mlp(), build_mlp()
        for stage in stages[number + 1 :]:
            model.load_state_dict(theta)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            num = den = 0.0
            for step, part in zip(stage.steps, parts_of(stage, share), strict=True):
                beside.load_state_dict(stage.state(step.index).parameters)
                whole = _gradients(beside, load(data, step.batches[0].ids))
                assert part is not None
                rows = load(data, part.step.batches[0].ids)
                h, g = _gradients(model, rows), _gradients(beside, rows)
                num = 0.8 * num + sum(float((a * b).sum()) for a, b in zip(h, g, strict=True))
                den = 0.8 * den + sum(float((b * b).sum()) for b in g)
                c = min(max(num / den, 0.0), 1.0)
                for p, ours, all_rows, theirs in zip(model.parameters(), h, whole, g, strict=True):
                    p.grad = ours + c * (all_rows - theirs)
                optimizer.param_groups[0]["lr"] = step.groups[0]["lr"]
                optimizer.step()
            theta = {n: t.detach().clone() for n, t in model.state_dict().items()}
        assert relative(found[arm].state.parameters, theta) < 1e-8


def _gradients(model: Any, batch: Any) -> list[Tensor]:
    return [*torch.autograd.grad(loss_of(model, batch), [*model.parameters()])]


def test_states_in_between_need_not_have_been_kept(tmp_path: Path) -> None:
    """The recorded run goes along by its gradients; where they have to be made, they cost whoever does not share them."""
    dense, sparse = (train(tmp_path / str(n), ADAM, build_mlp, every=n) for n in (1, 20))
    shared = context_of(
        sparse.rerun(), budget=40, recorded=RecordedRun(frozenset({"two", "three"}))
    )
    kept = context_of(dense.rerun(), budget=40)
    ours, theirs = (SubBatchReplay().estimate(c, arms_of(sparse)) for c in (shared, kept))
    for arm, c in ours.items():
        assert not c.exact
        assert relative(c.state.parameters, theirs[arm].state.parameters) < 1e-8
    context = context_of(sparse.rerun(), budget=55)
    forecast = SubBatchReplay().forecast(sparse.trajectory, arms_of(sparse), context)
    found = SubBatchReplay().estimate(context, arms_of(sparse))
    assert sum(c.gradients for c in found.values()) == pytest.approx(forecast.gradients)
    assert forecast.gradients > 40
    share = Shares(sparse.trajectory, arms_of(sparse), context).within(55)
    free = context_of(dense.rerun(), budget=55)
    other = Shares(dense.trajectory, arms_of(dense), free).within(55)
    assert other > share


def test_more_rows_are_closer(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAM, build_mlp, every=1)
    exact = estimate(recorded, None)
    off = {
        share: sum(
            relative(c.delta, exact[arm].delta) for arm, c in estimate(recorded, share).items()
        )
        for share in (0.3, 0.9)
    }
    assert off[0.9] < off[0.3]


def test_it_says_how_far_beyond_itself_it_is_to_be_read(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAM, build_mlp, every=1)
    for c in estimate(recorded, 0.6).values():
        assert 0 < c.beyond < 1
        assert {key.partition(": ")[2] for key in c.diagnostics} == {"c", "missed", "size"}
    twin = SubBatchReplay().twin()
    assert all(c.beyond == 0 for c in estimate(recorded, 0.6, coarser=twin.coarser).values())


def test_statistics_of_a_part_stand_for_the_batch_s(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAM, build_normed, every=1)
    exact, found = estimate(recorded, None), estimate(recorded, 0.8)
    for arm, c in found.items():
        moving = [n for n in c.state.buffers if n.endswith("running_var")]
        assert moving
        for name in moving:
            assert float(c.state.buffers[name].min()) >= 0
            assert torch.allclose(c.state.buffers[name], exact[arm].state.buffers[name], rtol=0.5)


def test_a_budget_that_pays_for_nothing_is_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAM, build_mlp, every=20)
    with pytest.raises(BudgetError, match="sub-batch-replay of 2 runs") as refused:
        SubBatchReplay().estimate(context_of(recorded.rerun(), budget=3), arms_of(recorded))
    assert "raise estimator.budget.gradients" in refused.value.remedy


def test_batches_that_have_no_rows_are_refused_before_anything_runs(tmp_path: Path) -> None:
    recorded = train(tmp_path, ADAM, build_mlp, every=1)
    for stage in recorded.trajectory.stages:
        bare = tuple(
            replace(s, batches=tuple(replace(b, dataset=None, ids=()) for b in s.batches))
            for s in stage.steps
        )
        stage.__dict__["steps"] = bare
    with pytest.raises(UnsupportedError, match="cannot be taken apart"):
        SubBatchReplay().require(
            recorded.trajectory, arms_of(recorded), context_of(recorded.rerun())
        )
