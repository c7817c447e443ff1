"""Recording: what is kept, what resuming gives, what is refused."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_optimizers as own
import pytest
import torch
from torch import nn
from training import (
    SGD3,
    StagePlan,
    build_dropped,
    build_mlp,
    build_tied,
    cross_entropy,
    load_batch,
    parameters,
    relative,
    retrain,
    table,
    train,
)

from auditspec import Dataset, Recorder
from auditspec.artifacts.digest import digest_file
from auditspec.artifacts.manifest import Manifest
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import EstimationError, RecordError
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, steps=7, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, steps=5),
    StagePlan("three", split=True, shift=2, carry=True, steps=60),
)


def test_recording_does_not_change_the_training(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED, build_dropped)
    plain = retrain(recorded, None)
    assert all(torch.equal(p, parameters(recorded.model)[n]) for n, p in parameters(plain).items())


def test_what_a_step_used_is_in_the_record(tmp_path: Path) -> None:
    recorded = train(tmp_path, MIXED)
    one, two, three = recorded.trajectory.stages
    assert [s.header.boundary for s in (one, two, three)] == ["reset", "reset", "carry"]
    assert [len(s.steps) for s in (one, two, three)] == [7, 5, 60]
    step = one.steps[3]
    assert [b.ids for b in step.batches] == [
        tuple(MIXED[0].ids(3)[0::2]),
        tuple(MIXED[0].ids(3)[1::2]),
    ]
    assert [b.weight for b in step.batches] == [0.5, 0.5]
    assert step.batches[0].dataset == "data"
    assert step.groups[0]["betas"] == (0.9, 0.999)
    rates = [s.groups[0]["lr"] for s in one.steps]
    assert rates[0] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert len(two.steps[0].groups) == 2
    assert two.steps[0].groups[1]["weight_decay"] == 0.05
    assert all(s.grad_norm is not None and s.grad_norm <= 0.3001 for s in two.steps)
    assert all(s.loss is not None and s.seconds > 0 for s in three.steps)
    digest = Dataset.open(tmp_path / "data.parquet").digest
    assert one.datasets == {"data": digest}


def test_the_loss_is_that_of_the_whole_step(tmp_path: Path) -> None:
    recorded = train(tmp_path, (StagePlan("one", microbatches=4),))
    data = recorded.datasets["data"]
    torch.manual_seed(0)
    model = build_mlp()
    wanted = cross_entropy(model, load_batch(data, recorded.plan[0].ids(0)))
    assert recorded.trajectory.stages[0].steps[0].loss == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("every", "kept"),
    [(1, list(range(7))), (4, [0, 4, 6]), (50, [0, 6]), ("boundaries", [0, 6])],
)
def test_states_are_kept_where_asked(tmp_path: Path, every: Any, kept: list[int]) -> None:
    recorded = train(tmp_path, SGD3, every=every)
    stage = recorded.trajectory.stages[1]
    assert list(stage.state_steps) == kept
    assert len(stage.steps) == (0 if every == "boundaries" else 6)
    grade = {1: "dense", "boundaries": "boundaries"}.get(every, "sparse")
    assert recorded.trajectory.grade == grade


def test_random_states_are_kept_only_where_numbers_were_drawn(tmp_path: Path) -> None:
    drawn = train(tmp_path / "a", SGD3, build_dropped).trajectory.stages[0].steps
    quiet = train(tmp_path / "b", SGD3, build_mlp).trajectory.stages[0].steps
    assert all(len(s.batches[0].rng["cpu"]) == torch.get_rng_state().numel() for s in drawn)
    assert all(not s.batches[0].rng for s in quiet)


def test_ties_are_recorded_once(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3, build_tied)
    assert recorded.trajectory.header.ties == {"head.weight": "embed.weight"}
    assert "head.weight" not in recorded.trajectory.stages[0].first.parameters


def test_batches_can_be_recorded_as_tensors(tmp_path: Path) -> None:
    data = table()
    x = torch.tensor(data[["x0", "x1", "x2", "x3"]].to_numpy())
    y = torch.tensor(data["y"].to_numpy())
    token = torch.tensor(data["token"].to_numpy())
    torch.manual_seed(0)
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "record", model, every=2, factory=build_mlp) as recorder:  # noqa: SIM117
        with recorder.stage("only", optimizer, cross_entropy, steps=5) as run:
            for step in run.steps:
                batch = tuple(t[step : step + 8] for t in (x, token, y))
                run.batch(tensors=batch)
                optimizer.zero_grad()
                cross_entropy(model, batch).backward()
                optimizer.step()
    trajectory = Trajectory.open(tmp_path / "record")
    functions = Functions(build_mlp, load_batch, {"only": cross_entropy}, lambda m, b: m(*b[:2]))
    stage = trajectory.stages[0]
    assert torch.equal(stage.steps[3].batches[0].tensors[0], x[3:11])
    reached = Rerun(trajectory, functions, {}).run(stage, stage.first)
    assert deviation(reached, stage.last) < 1e-15  # a slice's alignment can change a sum's order


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    folder = tmp_path / "record"
    listed = Manifest.decode((folder / "manifest.json").read_bytes())
    assert not listed.differences(Manifest.scan(folder).without("manifest.json"))
    (folder / "00-one" / "state-000002.safetensors").write_bytes(b"x")
    changed = listed.differences(Manifest.scan(folder).without("manifest.json"))
    assert changed.changed == ("00-one/state-000002.safetensors",)


@pytest.mark.parametrize("stage", ["one", "two", "three"])
@pytest.mark.parametrize("step", [0, 3, 53])
@pytest.mark.parametrize("every", [1, 2, "boundaries"])
def test_an_interrupted_run_resumes_to_the_same_end(
    tmp_path: Path, stage: str, step: int, every: Any
) -> None:
    if step >= {"one": 7, "two": 5, "three": 60}[stage]:
        pytest.skip("the stage is shorter")
    whole = train(tmp_path / "whole", MIXED, build_dropped, every)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", MIXED, build_dropped, every, stop_at=(stage, step))
    Trajectory.open(tmp_path / "cut" / "record")  # what was written is readable
    again = train(tmp_path / "cut", MIXED, build_dropped, every, resume=True, seed=99)
    assert all(
        torch.equal(p, parameters(whole.model)[n]) for n, p in parameters(again.model).items()
    )
    rerun = again.rerun()
    for part, start, stop in again.trajectory.windows():
        if every != "boundaries":
            assert deviation(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def test_resuming_a_finished_record_gives_the_trained_model(tmp_path: Path) -> None:
    first = train(tmp_path, SGD3)
    again = train(tmp_path, SGD3, resume=True, seed=5)
    assert relative(parameters(again.model), parameters(first.model)) == 0


# --- refusals -----------------------------------------------------------------------------------


def record(tmp_path: Path, model: nn.Module, **options: Any) -> Recorder:
    return Recorder(tmp_path / "record", model, factory=build_mlp, load_batch=load_batch, **options)


def test_a_folder_with_a_record_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    with pytest.raises(RecordError, match="holds a record already") as error:
        train(tmp_path, SGD3)
    assert "resume=True" in error.value.remedy


def test_resuming_with_other_stages_is_refused(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    changed = (StagePlan("one", steps=7), *SGD3[1:])
    with pytest.raises(RecordError, match="is not the stage 'one'"):
        train(tmp_path, changed, resume=True)
    with pytest.raises(RecordError, match="stage 'three' of the record was not run again"):
        train(tmp_path, SGD3[:2], resume=True)
    with pytest.raises(RecordError, match="another factory"):
        train(tmp_path, SGD3, build_tied, resume=True)


def test_a_factory_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"another model than the one recorded: .*embed\.weight"):
        record(tmp_path, build_tied())


@pytest.mark.parametrize(
    "objective", [functools.partial(cross_entropy), nn.CrossEntropyLoss(label_smoothing=0.1), max]
)
def test_a_callable_without_a_name_is_refused(tmp_path: Path, objective: Any) -> None:
    model = build_mlp()
    stage = record(tmp_path, model).stage(
        "one", torch.optim.SGD(model.parameters()), objective, steps=1
    )
    with pytest.raises(RecordError, match="cannot be named in a record"), stage:
        pass


def test_a_local_function_cannot_be_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be named"):
        Recorder(tmp_path / "r", build_mlp(), factory=lambda: build_mlp(), load_batch=load_batch)


def closure_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.loss([0, 1]).backward()
    optimizer.step(lambda: 0.0)


def undeclared_forward(run: Any, model: nn.Module, optimizer: Any) -> None:
    model(torch.ones(1, 4).double(), torch.zeros(1).long())


def undeclared_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    optimizer.step()


def scaled_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.loss([0, 1]).backward()
    optimizer.grad_scale = torch.ones(1)
    optimizer.step()


def unclipped_step(run: Any, model: nn.Module, optimizer: Any) -> None:
    (run.loss([0, 1]) * 1e6).backward()
    optimizer.step()


def too_many_steps(run: Any, model: nn.Module, optimizer: Any) -> None:
    for _ in range(3):
        loss = run.loss([0, 1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def too_few_steps(run: Any, model: nn.Module, optimizer: Any) -> None:
    pass


def foreign_data(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch([0], dataset=Dataset("other", Path("x"), "sha256:0"))


def nothing_declared(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch()


def nested_batch(run: Any, model: nn.Module, optimizer: Any) -> None:
    run.batch(tensors=({"x": torch.ones(1)},))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("misuse", "said"),
    [
        (closure_step, "closure"),
        (undeclared_forward, "forward pass without a declared batch"),
        (undeclared_step, "step without a declared batch"),
        (scaled_step, "gradient scaler"),
        (unclipped_step, "above the declared clip_norm"),
        (too_many_steps, "more steps than the 2 declared"),
        (too_few_steps, "ended after 0 of 2 steps"),
        (foreign_data, "a data set that the stage names"),
        (nothing_declared, "either ids or tensors"),
        (nested_batch, "batch of type tuple cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_name(
    tmp_path: Path, misuse: Callable[..., None], said: str
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = record(tmp_path, model)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=said) as error,
        recorder.stage(
            "one", optimizer, cross_entropy, dataset=data, steps=2, clip_norm=1.0
        ) as run,
    ):
        misuse(run, model, optimizer)
    assert error.value.remedy
    model(torch.ones(1, 4).double(), torch.zeros(1).long())  # the hooks are gone


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda p: local_class()(p, lr=0.1), r"Local.* cannot be named in a record"),
        (lambda p: own.Hidden(p, factor=2.0), "Hidden keeps factor outside its parameter groups"),
        (lambda p: own.Unruly(p, 0.1, None), "Unruly cannot be built from its own .*TypeError"),
        (
            lambda p: own.Lion([{"params": p, "names": {"a": 1}}]),
            r"Lion's option 'names' \(dict\) cannot be recorded",
        ),
        (
            lambda p: torch.optim.SGD(p, weight_decay=math.inf),
            "'weight_decay' .* cannot be recorded",
        ),
        (lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1)), "learning rate that is a tensor"),
        (lambda p: torch.optim.LBFGS(p), "LBFGS needs a closure"),
        (lambda p: torch.optim.SGD([*p, torch.ones(1, requires_grad=True)]), "the model does not"),
    ],
)
def test_optimizers_that_cannot_be_recorded(
    tmp_path: Path, optimizer: Callable[..., Any], said: str
) -> None:
    model = build_mlp()
    recorder = record(tmp_path, model)
    made = optimizer(list(model.parameters()))
    with (
        pytest.raises(RecordError, match=said),
        recorder.stage("one", made, cross_entropy, steps=1),
    ):
        pass


@pytest.mark.parametrize(("clip_norm", "left"), [(1.0, []), (None, ["one.weight"]), (None, [])])
def test_a_stale_gradient_of_a_frozen_parameter_is_refused_where_it_counts(
    tmp_path: Path, clip_norm: float | None, left: list[str]
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data = Dataset.open(tmp_path / "data.parquet")
    model = build_mlp()
    cross_entropy(model, load_batch(data, [0, 1])).backward()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != "one.weight")
    taken = [p for n, p in model.named_parameters() if p.requires_grad or n in left]
    stage = record(tmp_path, model).stage(
        "one", torch.optim.SGD(taken), cross_entropy, steps=1, clip_norm=clip_norm
    )
    said = r"ended after 0 of 1" if clip_norm is None and not left else "'one.weight' is frozen but"
    with pytest.raises(RecordError, match=said), stage:
        pass


@pytest.mark.parametrize("every", [1, 50])
def test_freezing_inside_a_stage_is_refused(tmp_path: Path, every: int) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=r"frozen or freed inside the stage: two\.bias"),
        record(tmp_path, model, every=every) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=2) as run,
    ):
        for _ in run.steps:
            run.loss([0, 1]).backward()
            optimizer.step()
            model.two.bias.requires_grad_(False)  # type: ignore[union-attr]


def local_class() -> Any:
    class Local(torch.optim.SGD):
        pass

    return Local


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (own.Counting, "step 0: Counting keeps what it learns in made"),
        (own.Adapting, "step 0: Adapting keeps what it learns in lr"),
        (own.Global, "state under 'all', which is no parameter"),
        (own.Listed, "keeps a list as 'history' of parameter"),
    ],
)
def test_what_an_optimizer_hides_from_the_record_is_refused(
    tmp_path: Path, kind: Any, said: str
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    model = build_mlp()
    optimizer = kind(model.parameters(), lr=0.1)
    data = Dataset.open(tmp_path / "data.parquet")
    with (
        pytest.raises(RecordError, match=said),
        record(tmp_path, model, every=1) as recorder,
        recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=2) as run,
    ):
        for _ in run.steps:
            run.loss([0, 1]).backward()
            optimizer.step()


def test_a_class_of_the_training_code_is_named_with_its_file(tmp_path: Path) -> None:
    options = {"lr": 0.1, "momentum": 0.9}
    recorded = train(tmp_path, (StagePlan("one", optimizer="SmallMuon", options=options),))
    header = recorded.trajectory.stages[0].header
    assert header.optimizer == "own_optimizers:SmallMuon"
    assert header.optimizer_code is not None
    assert header.optimizer_code.digest == digest_file(Path(str(own.__file__)))[0]
    assert header.groups[0].options["coefficients"] == (3.4, -4.8, 2.0)
    bare = Functions(build_mlp, load_batch, {"one": cross_entropy}, lambda m, b: m(*b[:2]))
    rerun = Rerun(recorded.trajectory, bare, recorded.datasets)
    with pytest.raises(EstimationError, match="the training code has no optimizer"):
        rerun.optimizer(recorded.trajectory.stages[0])


def test_an_optimizer_with_foreign_state_and_changed_weights_are_refused(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3[:1])
    model = recorded.model
    used = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cross_entropy(model, load_batch(recorded.datasets["data"], [0, 1])).backward()
    used.step()
    recorder = record(tmp_path / "new", model)
    with pytest.raises(RecordError, match="no recorded stage left"):  # noqa: SIM117
        with recorder.stage("one", used, cross_entropy, steps=1):
            pass


def test_weights_changed_between_stages_are_refused(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data, model = Dataset.open(tmp_path / "data.parquet"), build_mlp()
    recorder = record(tmp_path, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.stage("one", optimizer, cross_entropy, dataset=data, steps=1) as run:
        run.loss([0]).backward()
        optimizer.step()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RecordError, match="changed between the stages"):  # noqa: SIM117
        with recorder.stage("two", optimizer, cross_entropy, dataset=data, steps=1):
            pass


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    model = nn.DataParallel(build_mlp())
    with pytest.raises(RecordError, match="DataParallel"):
        record(tmp_path, model)


def test_a_full_disk_is_told_before_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(RecordError, match="are free"):
        train(tmp_path, SGD3)


def test_a_failing_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import auditspec.recorder.writer as writer

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, SGD3)
    assert not json.loads((tmp_path / "record" / "record.json").read_text())["complete"]
