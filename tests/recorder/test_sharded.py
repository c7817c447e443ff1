"""Runs that `fully_shard` spreads over ranks: what is recorded, re-run by one process, against plain FSDP2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import library_audit
import pytest
import small_audit
import torch
from estimates import replay, replay_all
from parallel_rerun import logits, rerun_of
from plain_parallel import STAGES, table
from plain_sharded import CASES
from ranks import ended, on_ranks
from sharded_audit import training
from torch import Tensor

from auditspec.engine.data_parallel import Gradients, turns
from auditspec.engine.sharded import norm_in_parts, reduced
from auditspec.errors import RecordError
from auditspec.estimator.interventions import Arm
from auditspec.record.format import Layout
from auditspec.record.trajectory import Microbatch, Trajectory
from auditspec.recorder.fully_shard import groups_of, waiting
from auditspec.recorder.sharded import summed_in
from auditspec.recorder.states import in_file
from auditspec.recorder.windows import Window, land


def tried(folder: Path, world: int, cases: tuple[str, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    table().to_parquet(folder / "data.parquet")
    on_ranks("plain_sharded.py", world, folder, *cases)
    on_ranks("sharded_training.py", world, folder, *cases)
    return folder


def check(folder: Path, world: int, name: str) -> None:
    """The record holds bit for bit, and effects of its stages are those of plain training without them."""
    case = CASES[name]
    plain = torch.load(folder / name / "plain.pt")
    recorded = torch.load(folder / name / "recorded.pt")
    assert all(torch.equal(recorded[n], tensor) for n, tensor in plain[""].items())

    rerun = rerun_of(folder / name, case)
    assert rerun.trajectory.header.layout == Layout(world_size=world, sharding="sharded")
    for window in rerun.trajectory.windows():
        landing = land(rerun, Window(*window))
        assert landing.holds, landing.problem
        assert landing.deviation is not None
        assert landing.deviation.deviation == 0, window

    with_all = logits(case, recorded)
    for stage in STAGES:
        state = replay(rerun, rerun.trajectory.stages[-1].last, Arm.without(stage)).state
        effect = with_all - logits(case, {**state.parameters, **state.buffers})
        exact = with_all - logits(case, plain[stage])
        assert exact.norm() > 1e-3
        assert torch.equal(effect, exact), stage

    if name == "mlp64":  # arms at once
        final = rerun.trajectory.stages[-1].last
        for arm, found in replay_all(rerun, final, Arm.each(STAGES[:2]), batched=True).items():
            for n, tensor in found.state.parameters.items():
                assert torch.allclose(tensor, plain[arm.stage][n], rtol=1e-9, atol=1e-10), n


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_records_of_sharded_ranks_are_rerun_by_one(tmp_path: Path, world: int) -> None:
    folder = tried(tmp_path, world, tuple(CASES))
    for name in CASES:
        check(folder, world, name)


def test_a_record_of_two_ranks_is_rerun_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states are whole tensors under the names of the model that is not sharded."""
    monkeypatch.setenv("AUDITSPEC_SELF_CHECK", "0")
    table().to_parquet(tmp_path / "data.parquet")
    on_ranks("sharded_training.py", 2, tmp_path, "each")
    case = CASES["each"]
    recorded = torch.load(tmp_path / "each" / "recorded.pt")
    rerun = rerun_of(tmp_path / "each", case)
    stage = rerun.trajectory.stages[-1]
    model = dict(case.build().named_parameters())
    for state in (stage.first, stage.last):
        assert {n: p.shape for n, p in state.parameters.items()} == {
            n: p.shape for n, p in model.items()
        }
    assert {n: s["exp_avg"].shape for n, s in stage.last.optimizer_state.items()} == {
        n: p.shape for n, p in model.items()
    }
    assert all(torch.equal(stage.last.parameters[n], t) for n, t in recorded.items())
    assert [(b.step, b.passes, b.parameters) for b in stage.header.buckets] == [
        (0, "each", (tuple(model),))
    ]
    for window in rerun.trajectory.windows():
        landing = land(rerun, Window(*window))
        assert landing.deviation is not None
        assert landing.deviation.deviation == 0, window


# --- sums and norms ---------------------------------------------------------------------------------


def gradients(ranks: int, *, dtype: torch.dtype = torch.float64) -> list[Gradients]:
    shapes = {"a": (5, 3), "b": (4,), "c": (1, 2)}
    return [
        {n: torch.randn(shape, dtype=dtype) for n, shape in shapes.items()} for _ in range(ranks)
    ]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_sums_by_parts_are_averages(ranks: int) -> None:
    """In whatever order, and where no loss reaches a parameter."""
    torch.manual_seed(ranks)
    own = gradients(ranks)
    for rank in own:
        rank["c"] = None
    parameters = {n: torch.ones(g.shape) for n, g in gradients(1)[0].items() if g is not None}
    parameters = {n: p.double() for n, p in parameters.items()}
    for buckets in ((), (("b", "a"), ("c",)), (("a", "c", "b"),)):
        found = reduced(own, ranks, parameters, buckets)
        assert found["c"] is None
        for name in "ab":
            parts = [g for rank in own if (g := rank[name]) is not None]
            total = found[name]
            assert total is not None
            assert torch.allclose(total, sum(parts, torch.zeros(())) / ranks, rtol=1e-12)


def test_the_order_of_a_sum_is_that_of_the_ring() -> None:
    """Rank c owns the c-th part; what it owns begins with rank c - 1, and goes down."""
    tiny, large = 1.0, 2.0**24
    ranks: list[Gradients] = [
        {"w": torch.full((8, 1), value)} for value in (large, tiny, tiny, -large)
    ]
    parameters = {"w": torch.ones(8, 1)}
    found = reduced(ranks, 4, parameters, [("w",)])["w"]
    assert found is not None

    def summed(*values: float) -> float:
        total = torch.tensor(values[0])
        for value in values[1:]:
            total = total + torch.tensor(value)
        return float(total) / 4

    values = (large, tiny, tiny, -large)
    assert found.flatten().tolist() == [
        summed(*(values[(part - back) % 4] for back in range(1, 5)))
        for part in (0, 0, 1, 1, 2, 2, 3, 3)
    ]
    assert found.unique().numel() > 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_norm_by_parts_is_the_norm(size: int) -> None:
    torch.manual_seed(size)
    own: list[Tensor] = [g for g in gradients(1)[0].values() if g is not None]
    whole = torch.cat([g.flatten() for g in own]).norm()
    assert torch.allclose(norm_in_parts(own, size), whole, rtol=1e-14)


def test_passes_are_summed_over_ranks_together_or_each() -> None:
    batches = [Microbatch("d", (i,), 1.0, {}, None, rank=i // 3) for i in range(6)]
    assert turns(batches, each=False) == [batches]
    together = [[b.ids[0] for b in turn] for turn in turns(batches, each=True)]
    assert together == [[0, 3], [1, 4], [2, 5]]


def test_what_was_summed_at_once_is_read_off_the_order() -> None:
    assert summed_in([]) == ()
    once = [(1, "b"), (1, "c"), (0, "a")]
    assert summed_in(once) == ((("b", "c"), ("a",)),)
    assert summed_in(once + once) == 2 * ((("b", "c"), ("a",)),)


def test_places_in_a_file_hold_tensors_and_leave_no_file(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.tensor([True]),
        "c": torch.arange(7),
        "d": torch.zeros(0, 2),
        "e": torch.tensor(2.0, dtype=torch.float64),
    }
    places = in_file(tensors, tmp_path)
    for name, tensor in tensors.items():
        places[name].copy_(tensor)
    for name, tensor in tensors.items():
        assert places[name].dtype == tensor.dtype
        assert torch.equal(places[name], tensor)
    assert not [*tmp_path.iterdir()]
    assert in_file({"d": torch.zeros(0, 2)}, tmp_path)["d"].shape == (0, 2)


# --- refusals ---------------------------------------------------------------------------------------

SHARD = r"stage 's', step 0: fully_shard of the model "
REFUSED = {
    "fine": r"nothing$",
    "again": r".* holds a record already \| choose another folder",
    "resumed": r".*a run on 2 processes cannot be resumed.*\| record it from its start",
    "precision": SHARD + r"has a MixedPrecisionPolicy \(torch\.bfloat16\).* \| use torch\.autocast",
    "own-precision": r"nothing$",
    "two-dimensions": SHARD
    + r"shards over some of the ranks only, .*HSDP.* \| shard over one mesh",
    "some-ranks": SHARD + r"shards over some of the ranks only, .* \| shard over one mesh",
    "tensors": r"stage 's': parameter 'one\.weight' is sharded by something else .* \| shard",
    "partly": r"stage 's': fully_shard leaves out parameter 'two\.weight', which is trained \| call",
    "divided": SHARD + r"divides gradients by 1, .* \| leave out set_gradient_divide_factor",
    "columns": SHARD + r"shards along another dimension .* \| leave out shard_placement_fn",
    "hooked": SHARD + r"has an all-reduce hook.* \| leave out set_all_reduce_hook",
    "apart": r"stage 's', step 0: gradients were not averaged .* \| call set_requires_gradient_sync",
    "partly-apart": r"stage 's', step 0: gradients were not averaged .* \| call set_requires",
    "heads": r"stage 's', step 0: rank 1 sums other gradients than rank 0.* \| .*unused_params\(True\)",
    "buffers": r"stage 's', step 1: norm\.running_mean is another .* \| .*before optimizer\.step\(\)",
    "other-parameters": r"the optimizer is another on rank 1 than on rank 0 \| make the same",
    "looked": r"stage 's', step 0: one\.weight was whole on rank 0 when .* \| make no pass between",
    "rate": r"stage 's', step 0: rank 1 made it with other hyperparameters than rank 0 \| train with",
    "extended": r"a model that fully_shard was given cannot be changed .* \| let the factory build all",
    "committed": r"nothing$",
    "other-plan": r"stage 's', step 0: is not the step that was committed to \| train the planned",
    "scaled": r"nothing$",
    "few": r"stage 's', step 2: rank \d ended the stage of 3 steps \| let every rank",
}
"""What every rank is told of each loop of `sharded_refusals`: the place, and a remedy."""


@pytest.mark.slow
def test_what_no_rerun_could_make_is_refused_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: a step that a scaler skips, since one rank overflows, is recorded."""
    monkeypatch.setenv("AUDITSPEC_SELF_CHECK", "1")
    table().to_parquet(tmp_path / "data.parquet")
    for said in on_ranks("sharded_refusals.py", 2, tmp_path):
        lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
        for name, pattern in REFUSED.items():
            assert re.match(pattern, lines[name]), (name, lines[name])
    (scaled,) = Trajectory.open(tmp_path / "scaled").stages
    assert (scaled.header.steps, scaled.header.skipped) == (2, 1)
    assert scaled.header.self_check is not None
    assert scaled.header.self_check.outcome == "bitwise"


@pytest.mark.slow
def test_a_rank_that_fails_leaves_none_waiting(tmp_path: Path) -> None:
    """Inside a step, where the others wait in the recorder; what it was is said by the one that failed."""
    table().to_parquet(tmp_path / "data.parquet")
    said, codes = ended("sharded_refusals.py", 2, tmp_path, "dies", seconds=60)
    assert codes == [0, 1], said
    assert "dies: another process of this run failed, or left it" in said[0]
    assert "ValueError: no more rows" in said[1]
    assert not Trajectory.open(tmp_path / "dies").header.complete


class Otherwise(torch.nn.Module):
    """Sharded by a torch that keeps other objects."""

    def _get_fsdp_state(self) -> object:
        return object()


def test_a_torch_that_keeps_other_objects_is_named() -> None:
    with pytest.raises(RecordError, match=r"torch .* does not say what fully_shard does .*_fsdp_p"):
        groups_of(torch.nn.Sequential(Otherwise()))
    with pytest.raises(RecordError, match=r"does not say what fully_shard does .* put together"):
        waiting([])


# --- audits -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "world", "kind"),
    [("mlp", 2, "float64"), ("gpt", 2, "float32"), ("gpt", 4, "float64"), ("mlp", 4, "float32")],
)
def test_an_audit_says_what_training_without_the_stage_gives(
    tmp_path: Path, net: str, world: int, kind: str
) -> None:
    """One process audits it; the deployed model is the folder that torch.distributed.checkpoint saved."""
    code = library_audit.COMMON + training(net, world, kind) + library_audit.MAIN
    (tmp_path / small_audit.CODE).write_text(code)
    library_audit.run(tmp_path, "record", AUDITSPEC_SELF_CHECK="1")
    checked = [stage.header.self_check for stage in Trajectory.open(tmp_path / "record").stages]
    assert [c and c.outcome for c in checked] == ["bitwise"] * 3
    spec = library_audit.specify(tmp_path, {"name": "AdamW"})

    def deployed(data: dict[str, dict[str, dict[str, str]]]) -> None:
        data["artifacts"]["final"]["path"] = "deployed"
        data["estimator"] |= {"dtype": kind}  # type: ignore[dict-item]

    small_audit.edit_spec(spec, deployed)
    small_audit.lock(spec)
    found = small_audit.ran(spec)
    outcomes = {check.id: (check.outcome, check.statistic) for check in found.checks}
    assert outcomes["record-fidelity"] == outcomes["evidence-integrity"] == ("pass", 0.0)
    truth = json.loads(library_audit.run(tmp_path, "truth").splitlines()[-1])
    bound = 1e-10 if kind == "float64" else 1e-6
    for effect in (e for e in found.effects if e.behavior == "zero-as-two"):
        exact = truth["None"] - truth[effect.stage]
        print(effect.stage, effect.value, abs(effect.value - exact) / abs(exact))
        assert effect.exact
        assert abs(effect.value - exact) <= bound * max(abs(exact), abs(truth["None"])), (
            effect.stage
        )
