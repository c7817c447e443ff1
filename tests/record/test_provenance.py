"""Tensors of a changed model that come from trained ones: found, recorded, and made anew in every arm.

The truth is `training.retrain`, a plain loop that goes through the functions once more.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import extensions
import numpy as np
import pytest
import torch
from deployment import deployed_as
from estimates import adjoint, paired_replay, replay, replay_all, sweep
from said import said
from torch import Tensor, nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    by_stage,
    cross_entropy,
    load_batch,
    parameters,
    relative,
    retrain,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.effects import unpropagated
from auditspec.errors import RecordError, UnsupportedError
from auditspec.estimator.compute import baseline
from auditspec.estimator.interventions import Arm
from auditspec.record import trajectory as reading
from auditspec.record.extension import tensors_of
from auditspec.record.provenance import departure, explained, same, with_noise
from auditspec.record.state import restore
from auditspec.spec.checks import RecordFidelity as FidelityOptions

ADAMW = {"lr": 0.01}
BASE = ("one.base",)


def taught(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Cross-entropy, and what a reference model says, where there is one."""
    loss = cross_entropy(model, batch)
    x, token, _ = batch
    if hasattr(model, "teacher"):
        ours = model(x.to(next(model.parameters())), token).log_softmax(1)
        with torch.no_grad():
            theirs = model.teacher(x.to(next(model.parameters())), token).log_softmax(1)
        loss = loss + nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    if hasattr(model, "reference"):
        apart = model.one.weight - model.reference + model.mean  # type: ignore
        loss = loss + apart.square().sum()
    return loss


def numbered(dataset: Dataset, ids: Any) -> tuple[Tensor, ...]:
    return (*load_batch(dataset, ids), torch.tensor(list(ids)))


def preferred(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """A preference loss against log-probabilities of the reference model that were kept."""
    x, token, y, rows = batch
    ours = model(x.to(next(model.parameters())), token).log_softmax(1)
    if not hasattr(model, "outputs"):
        return nn.functional.nll_loss(ours, y)
    gain = ours - model.outputs[rows]  # type: ignore[index, operator]
    margin = gain.gather(1, y[:, None]) - gain.gather(1, (y[:, None] + 1) % 3)
    return -nn.functional.logsigmoid(margin).mean()


def plan(
    extend: str, *, adapt: bool = False, frozen: tuple[str, ...] = ()
) -> tuple[StagePlan, ...]:
    middle = (
        StagePlan(
            "two", optimizer="AdamW", options=ADAMW, shift=1, extend="add_adapters", frozen=BASE
        )
        if adapt
        else StagePlan("two", optimizer="AdamW", options=ADAMW, shift=1)
    )
    return (
        StagePlan("one"),
        middle,
        StagePlan("three", 6, "AdamW", ADAMW, shift=2, extend=extend, frozen=frozen, lean=True),
        StagePlan("four", shift=3, frozen=frozen, lean=True),
    )


Case = tuple[tuple[StagePlan, ...], Callable[[], nn.Module], dict[str, Any]]
TAUGHT = {"objective": taught}
CASES: dict[str, Case] = {
    "copied adapters": (plan("copy_adapters", frozen=BASE), build_mlp, {}),
    "loaded head": (plan("load_head"), build_mlp, {}),
    "merged weights": (plan("merge_adapters", adapt=True), build_mlp, {}),
    "merged in place": (plan("merge_in_place", adapt=True), build_mlp, {}),
    "more tokens": (plan("more_tokens"), build_tied, {}),
    "teacher": (plan("add_teacher", frozen=("teacher",)), build_mlp, TAUGHT),
    "teacher with dropout": (plan("add_teacher", frozen=("teacher",)), build_dropped, TAUGHT),
    "teacher with BatchNorm": (plan("add_teacher", frozen=("teacher",)), build_normed, TAUGHT),
    "reference in buffers": (plan("keep_reference"), build_mlp, TAUGHT),
    "reference outputs": (
        plan("keep_outputs"),
        build_mlp,
        {"objective": preferred, "load": numbered},
    ),
    "copy with noise": (plan("noisy_copy"), build_mlp, {}),
    "rewritten": (plan("shrink"), build_mlp, {}),
    "drawn into the old head": (plan("start_over"), build_mlp, {}),
}


def recorded_case(folder: Path, name: str, every: int = 4) -> Recorded:
    steps, build, options = CASES[name]
    np.random.seed(1)
    random.seed(1)
    return train(folder, steps, build, every, **options)


def truth(recorded: Recorded, stage: str) -> nn.Module:
    np.random.seed(1)
    random.seed(1)
    return retrain(recorded, stage)


@pytest.mark.parametrize("name", CASES)
def test_replay_is_retraining_bit_for_bit(tmp_path: Path, name: str) -> None:
    recorded = recorded_case(tmp_path, name)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    assert relative(parameters(truth(recorded, "")), final.parameters) == 0
    for stage in recorded.plan:
        found, model = replay(rerun, final, Arm.without(stage.id)), truth(recorded, stage.id)
        assert all(found.state.parameters[n].equal(p) for n, p in parameters(model).items())
        assert all(found.state.buffers[n].equal(b) for n, b in model.named_buffers())
        assert found.displacement > 1e-3
    options = FidelityOptions(windows="all")
    checkpoint = {n: t.clone() for n, t in recorded.model.state_dict().items()}
    check = RecordFidelity(recorded.rerun(), deployed_as(checkpoint), options).run()
    assert (check.outcome, check.statistic) == ("pass", 0.0), said(check.reasons)


@pytest.mark.parametrize("name", [n for n in CASES if "BatchNorm" not in n])
def test_batched_arms_and_paired_replay_are_replay(tmp_path: Path, name: str) -> None:
    recorded = recorded_case(tmp_path, name)
    final, names = recorded.trajectory.stages[-1].last, ["one", "two", "three"]
    exact = {stage: replay(recorded.rerun(), final, Arm.without(stage)) for stage in names}
    batched = by_stage(replay_all(recorded.rerun(), final, Arm.each(names), batched=True))
    paired = by_stage(paired_replay(recorded.rerun(), final, Arm.each(names), gradients=10_000))
    for stage in names:
        assert relative(batched[stage].delta, exact[stage].delta) < 1e-9
        assert relative(paired[stage].delta, exact[stage].delta) < 1e-9
        assert paired[stage].exact
    assert not any(c.notes for c in batched.values())


@pytest.mark.parametrize(
    ("name", "added", "copied", "derived", "rewritten"),
    [
        (
            "copied adapters",
            {"one.down", "one.up", "one.scale"},
            {"one.base.weight": "one.weight", "one.base.bias": "one.bias"},
            set(),
            set(),
        ),
        (
            "loaded head",
            set(),
            {"two.weight": "two.weight", "two.bias": "two.bias"},
            set(),
            set(),
        ),
        ("merged weights", set(), {"one.bias": "one.base.bias"}, {"one.weight"}, set()),
        ("merged in place", set(), {}, {"one.weight"}, {"one.weight"}),
        ("more tokens", set(), {}, {"embed.weight"}, set()),
        (
            "teacher with BatchNorm",
            set(),
            {
                f"teacher.{name}": name
                for name in (
                    *(f"{layer}.{part}" for layer in ("one", "two", "norm") for part in ("weight", "bias")),
                    *(f"norm.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")),
                )
            },
            set(),
            set(),
        ),
        ("reference in buffers", set(), {"reference": "one.weight"}, {"mean"}, set()),
        ("reference outputs", set(), {}, {"outputs"}, set()),
        ("copy with noise", set(), {}, {"two.weight", "two.bias"}, set()),
        ("rewritten", set(), {}, {"one.weight"}, {"one.weight"}),
        (
            "drawn into the old head",
            {"two.weight", "two.bias"},
            {},
            set(),
            {"two.weight", "two.bias"},
        ),
    ],
)  # fmt: skip
def test_the_header_says_where_first_values_come_from(
    tmp_path: Path,
    name: str,
    added: set[str],
    copied: dict[str, str],
    derived: set[str],
    rewritten: set[str],
) -> None:
    recorded = recorded_case(tmp_path, name)
    header = recorded.trajectory.stages[2].header
    assert set(header.added) == added
    assert header.copied == copied
    assert set(header.derived) == derived
    assert set(header.rewritten) == rewritten
    assert recorded.trajectory.stages[3].header.copied == {}


def test_what_is_random_begins_as_recorded_and_the_rest_follows(tmp_path: Path) -> None:
    recorded = recorded_case(tmp_path, "more tokens")
    rerun, (one, two, three, _) = recorded.rerun(), recorded.trajectory.stages
    arm = one.first
    begun = rerun.carry_over(2, arm).parameters["embed.weight"]
    first = three.first.parameters["embed.weight"]
    assert begun[:8].equal(arm.parameters["embed.weight"])
    assert begun[8].equal(first[8])
    assert begun[9].equal(arm.parameters["embed.weight"].mean(0))
    assert rerun.carry_over(2, two.last).parameters["embed.weight"].equal(first)


@pytest.mark.parametrize("name", ["copied adapters", "merged weights", "copy with noise"])
def test_the_whole_run_is_repeated_in_another_precision(tmp_path: Path, name: str) -> None:
    np.random.seed(1)
    random.seed(1)
    recorded = train(tmp_path, CASES[name][0], build_mlp32)
    wide, last = recorded.rerun(dtype=torch.float64), recorded.trajectory.stages[-1].last
    run = baseline(wide)
    assert {t.dtype for t in run.starts["three"].parameters.values()} == {torch.float64}
    assert 0 < relative(run.final.parameters, last.parameters) < 1e-4
    narrow = replay(recorded.rerun(), last, Arm.without("one"))
    assert relative(replay(wide, run.final, Arm.without("one")).delta, narrow.delta) < 1e-2


def test_a_copied_layer_no_longer_hides_the_stage_that_trained_it(tmp_path: Path) -> None:
    """Biased rows train the layers that the last stage's adapters copy."""
    stages = (
        StagePlan("clean", 20, options={"lr": 0.1}),
        StagePlan("vendor", 20, options={"lr": 0.5}, shift=1),
        StagePlan("polish", 4, options={"lr": 0.01}, shift=2, extend="copy_adapters", frozen=BASE),
    )
    recorded = train(tmp_path, stages)
    final, data = recorded.trajectory.stages[-1].last, recorded.datasets["data"]
    x, token, y = load_batch(data, range(48))
    rerun = recorded.rerun()

    def loss(state: Any) -> float:
        rerun.enter(rerun.trajectory.stages[-1])
        restore(state, rerun.model)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(rerun.model(x, token), y))

    effects, wanted = {}, {}
    for stage in ("vendor", "polish"):
        effects[stage] = loss(final) - loss(replay(rerun, final, Arm.without(stage)).state)
        model = truth(recorded, stage)
        with torch.no_grad():
            without = float(nn.functional.cross_entropy(model(x, token), y))
        wanted[stage] = loss(final) - without
    assert effects == pytest.approx(wanted, abs=1e-12)
    assert abs(effects["vendor"]) > 10 * abs(effects["polish"]) > 0


# --- estimators that follow a displacement --------------------------------------------------------


def test_displacement_follows_a_copy(tmp_path: Path) -> None:
    stages = (
        StagePlan("one", options={"lr": 1e-3}),
        StagePlan("two", 6, options={"lr": 1e-2}, shift=2, extend="load_head"),
    )
    recorded = train(tmp_path, stages)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    exact = replay(rerun, final, Arm.without("one"))
    found = sweep(rerun, final, {"one": "displacement"})["one"]
    assert relative(found.delta, exact.delta) < 1e-2
    assert float(exact.delta["two.weight"].norm()) > 1e-4
    below = unpropagated(rerun, final, "one").parameters["two.weight"]
    first = recorded.trajectory.stages[0]
    moved = first.first.parameters["two.weight"] - first.last.parameters["two.weight"]
    assert torch.allclose(below - final.parameters["two.weight"], moved, atol=1e-12)


@pytest.mark.parametrize("name", ["merged weights", "reference in buffers", "copy with noise"])
def test_what_a_tangent_cannot_follow_is_refused_by_name(tmp_path: Path, name: str) -> None:
    recorded = recorded_case(tmp_path, name)
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    slopes = {"b": {n: torch.ones_like(p) for n, p in final.parameters.items()}}
    for estimate in (
        lambda: sweep(rerun, final, {"one": "displacement"}),
        lambda: sweep(rerun, final, {"one": "first-order"}),
        lambda: adjoint(rerun, slopes),
    ):
        with pytest.raises(UnsupportedError, match="stage 'three' begins with values") as error:
            estimate()
        assert "replay" in error.value.remedy


def test_the_rung_below_takes_a_displacement_through_the_change(tmp_path: Path) -> None:
    recorded = recorded_case(tmp_path, "merged weights")
    rerun, stages = recorded.rerun(), recorded.trajectory.stages
    moved = {n: t - stages[1].last.parameters[n] for n, t in stages[1].first.parameters.items()}
    found = rerun.displaced(2, moved)
    start = rerun.carry_over(2, stages[1].first).parameters["one.weight"]
    assert torch.allclose(found["one.weight"], start - stages[2].first.parameters["one.weight"])
    assert float(found["one.weight"].norm()) > 1e-4


# --- refusals -------------------------------------------------------------------------------------


def open_recorder(folder: Path, model: nn.Module) -> Recorder:
    return Recorder(folder / "record", model, factory=build_mlp, load_batch=load_batch)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("hide_teacher", r"outside parameters and buffers: model\.teachers\[0\]"),
        ("global_teacher", r"outside parameters and buffers: extensions\.TEACHER"),
        ("clock", "makes other values of the same ones each time: spare"),
        ("brittle", "brittle fails on a model with other values"),
    ],
)
def test_a_function_that_cannot_be_repeated_is_refused(
    tmp_path: Path, function: str, said: str
) -> None:
    recorder = open_recorder(tmp_path, build_mlp())
    with pytest.raises(RecordError, match=said):
        recorder.extend(getattr(extensions, function))
    extensions.SEEN.clear()


def test_values_that_another_hand_gave_are_refused(tmp_path: Path) -> None:
    """Weights loaded after the function would be called its own."""
    model = build_mlp()
    train(tmp_path, (StagePlan("one"),))
    data = Dataset.open(tmp_path / "data.parquet")
    recorder = open_recorder(tmp_path / "again", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=1) as run:
        run.loss([0, 1]).backward()
        optimizer.step()
    head = {n: t.clone() for n, t in model.two.state_dict().items()}  # type: ignore[union-attr, operator]
    recorder.extend(extensions.new_head)
    model.two.load_state_dict(head)  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(RecordError, match=r"changed between the stages: two\.weight") as error,
        recorder.stage("two", optimizer, cross_entropy, dataset=data, steps=1),
    ):
        pass
    assert "recorder.extend" in error.value.remedy


def test_data_of_a_change_is_data_of_its_stage(tmp_path: Path) -> None:
    train(tmp_path, (StagePlan("one"),))
    data, model = Dataset.open(tmp_path / "data.parquet"), build_mlp()
    recorder = open_recorder(tmp_path / "again", model)
    recorder.extend(extensions.keep_outputs, dataset=data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(RecordError, match="does not name the data set 'data'"),
        recorder.stage("one", optimizer, cross_entropy, steps=1),
    ):
        pass


def test_a_record_that_calls_a_copy_added_is_found_out(tmp_path: Path) -> None:
    recorded = recorded_case(tmp_path, "loaded head")
    path = recorded.folder / "record" / "record.json"
    header = reading.read_header(path.parent)
    stages = list(header.stages)
    stages[2] = stages[2].model_copy(update={"added": tuple(stages[2].copied), "copied": {}})
    path.write_text(header.model_copy(update={"stages": tuple(stages)}).model_dump_json())
    lying = reading.Trajectory.open(path.parent)
    honest = recorded.rerun()
    recorded.trajectory = lying
    rerun, final = recorded.rerun(), lying.stages[-1].last
    checkpoint = {n: t.clone() for n, t in recorded.model.state_dict().items()}
    check = RecordFidelity(rerun, deployed_as(checkpoint), FidelityOptions(windows="all")).run()
    assert check.outcome == "fail"
    assert "come from elsewhere than the record says of" in said(check.reasons)
    found = replay(rerun, final, Arm.without("one"))  # the arm itself is right even so
    assert relative(found.delta, replay(honest, final, Arm.without("one")).delta) == 0


def test_initial_values_that_the_function_does_not_make_are_found_out(tmp_path: Path) -> None:
    recorded = recorded_case(tmp_path, "copy with noise")
    held = extensions.EXTENSIONS["load_head"]
    functions: Any = recorded.functions
    functions.extensions["extensions:noisy_copy"] = held
    rerun, final = recorded.rerun(), recorded.trajectory.stages[-1].last
    with pytest.raises(RecordError, match=r"does not make the recorded initial value of two\."):
        replay(rerun, final, Arm.without("one"))


# --- parts ----------------------------------------------------------------------------------------


def test_noise_keeps_signs_and_integers_and_moves_everything_else() -> None:
    values = {
        "weight": torch.tensor([-2.0, 0.0, 3.0]),
        "zeros": torch.zeros(3),
        "count": torch.tensor(7),
    }
    noisy = with_noise(values)
    assert bool((noisy["weight"] != values["weight"]).all())
    assert noisy["weight"][0] < 0 < noisy["weight"][1]
    assert bool((noisy["zeros"] > 0).all())
    assert noisy["count"].equal(values["count"])
    assert same(with_noise(values)["weight"], noisy["weight"])


def test_departures_tell_rounding_from_other_values() -> None:
    wanted = torch.tensor([1.0, torch.nan])
    assert departure(wanted.clone(), wanted) == 0
    one = torch.ones(4)
    assert explained(one * (1 + 1e-7), one)
    assert not explained(one * 1.001, one)
    assert not explained(torch.tensor([True]), torch.tensor([False]))
    assert not explained(torch.ones(3), one)


def test_tensors_are_copies() -> None:
    model = build_mlp()
    held = tensors_of(model)
    with torch.no_grad():
        model.one.weight.zero_()  # type: ignore[union-attr, operator]
    assert float(held["one.weight"].norm()) > 0
