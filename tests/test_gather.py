from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_audit import CODE, edit_code, edit_spec
from tampering import Rows, change_header, change_steps, copy
from torch import nn
from training import Recorded, StagePlan, load_batch, train

from auditspec import Recorder
from auditspec.artifacts.code import CodeBundle
from auditspec.audited_code import code_errors, load_functions
from auditspec.errors import EstimationError, EvidenceError
from auditspec.estimator.krylov.segments import Declared
from auditspec.evidence import inspect_all
from auditspec.gather import (
    CURVE_POINTS,
    changed_code,
    declared_of,
    open_all,
    stage_result,
)
from auditspec.record.format import FunctionRef
from auditspec.record.trajectory import Trajectory
from auditspec.schedules import Constant, Cosine
from auditspec.spec.models import Stage
from auditspec.spec.source import load


def stage(**changes: Any) -> Stage:
    fields: dict[str, Any] = {
        "id": "one",
        "owner": "Team",
        "description": "d",
        "data": ["data"],
        "objective": "training:cross_entropy",
        "optimizer": {"name": "SGD", "lr": 0.1, "betas": [0.9, 0.999], "options": {"fused": True}},
    }
    return Stage.model_validate(fields | changes)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), [StagePlan("one", microbatches=2)])


# --- opening ------------------------------------------------------------------------------------


def test_only_what_is_used_is_opened(audit_spec: Path) -> None:
    (audit_spec.parent / "spare.parquet").write_bytes(b"no table")
    edit_spec(audit_spec, lambda data: data["artifacts"].update(spare={"path": "spare.parquet"}))
    loaded = load(audit_spec)
    evidence = inspect_all(loaded)
    opened = open_all(loaded, evidence)
    assert set(opened.datasets) == {"clean", "vendor", "holdout"}
    assert [s.id for s in opened.trajectory.stages] == ["base", "labels", "polish"]
    assert [f.path for f in opened.code.files] == [CODE]
    last = opened.trajectory.stages[-1].last
    assert all(torch.equal(t, last.parameters[n]) for n, t in opened.deployed.tensors.items())


@pytest.mark.parametrize("name", ["final", "record", "code", "holdout"])
def test_what_changes_after_the_check_is_not_used(audit_spec: Path, name: str) -> None:
    loaded = load(audit_spec)
    evidence = inspect_all(loaded)
    path = audit_spec.parent / loaded.spec.artifacts[name].path
    if path.is_dir():
        path = path / "record.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(EvidenceError, match="digest is"):
        open_all(loaded, evidence)


def test_a_diverged_checkpoint_is_refused(audit_spec: Path) -> None:
    from auditspec.artifacts.checkpoints import read_tensors, write_tensors

    path = audit_spec.parent / "model.safetensors"
    tensors = read_tensors(path)
    tensors["0.bias"][1] = math.nan
    write_tensors(path, tensors)
    loaded = load(audit_spec)
    with pytest.raises(EvidenceError, match="not finite"):
        open_all(loaded, inspect_all(loaded))


def test_functions_are_loaded_from_the_checked_bytes(audit_spec: Path) -> None:
    custom = {"name": "custom", "entrypoint": "small_training:objective", "unit": "nats"}
    edit_spec(audit_spec, lambda data: data["behaviors"][1].update(metric=custom))
    loaded = load(audit_spec)
    opened = open_all(loaded, inspect_all(loaded))
    (audit_spec.parent / CODE).write_text("raise RuntimeError('these bytes were not checked')")
    with opened.code.importable():
        functions, metrics = load_functions(loaded.spec, opened.code)
        assert set(functions.objectives) == {"base", "labels", "polish"}
        assert list(metrics) == ["small_training:objective"]
        model = functions.factory()
        batch = functions.load_batch(opened.datasets["holdout"], [0, 1])
        assert functions.predict(model, batch).shape == (2, 3)


def test_code_that_trained_and_code_that_did_not(audit_spec: Path) -> None:
    loaded = load(audit_spec)
    assert changed_code(open_all(loaded, inspect_all(loaded))) == ()
    edit_code(audit_spec, "import numpy as np", "import numpy as np  # another comment")
    loaded = load(audit_spec)
    changed = changed_code(open_all(loaded, inspect_all(loaded)))
    assert [name.partition(":")[2] for name in changed] == [
        "build_model",
        "load_batch",
        "objective",
    ]


def test_an_optimizer_of_the_training_code_is_loaded_and_its_file_compared(
    audit_spec: Path,
) -> None:
    own = "class Own(torch.optim.SGD):\n    pass\n\n\ndef build_model():"
    edit_code(audit_spec, "def build_model():", own)
    name = "small_training:Own"
    edit_spec(audit_spec, lambda data: data["stages"][1]["optimizer"].update(name=name))
    loaded = load(audit_spec)
    opened = open_all(loaded, inspect_all(loaded))
    with opened.code.importable():
        functions, _ = load_functions(loaded.spec, opened.code)
        assert list(functions.optimizers) == [name]
        assert issubclass(functions.optimizers[name], torch.optim.SGD)  # type: ignore[arg-type]
    stage = opened.trajectory.header.stages[1]
    for digest, changed in ((opened.code.digest, False), ("sha256:0", True)):
        code = FunctionRef(name=name, digest=digest)
        ours = stage.model_copy(update={"optimizer": name, "optimizer_code": code})
        header = opened.trajectory.header.model_copy(update={"stages": (ours,)})
        trajectory = Trajectory(opened.trajectory.folder, header)
        assert (name in changed_code(replace(opened, trajectory=trajectory))) is changed


# --- errors of the audited code -----------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> CodeBundle:
    code = "def inner(x):\n    return 1 / x\n\ndef outer(x):\n    return inner(x)\n"
    code += "def leave():\n    raise SystemExit(0)\n"
    (tmp_path / "audited_code.py").write_text(code)
    return CodeBundle.read(tmp_path / "audited_code.py", None)


def test_an_error_names_the_innermost_line_of_the_code(bundle: CodeBundle) -> None:
    message = r"failed at audited_code.py:2: ZeroDivisionError"
    with (
        bundle.importable(),
        pytest.raises(EstimationError, match=message) as error,
        code_errors(bundle),
    ):
        bundle.load("audited_code:outer")(0)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_an_exit_of_the_code_does_not_end_the_audit(bundle: CodeBundle) -> None:
    with (
        bundle.importable(),
        pytest.raises(EstimationError, match=r"audited_code.py:7: SystemExit"),
        code_errors(bundle),
    ):
        bundle.load("audited_code:leave")()


@pytest.mark.parametrize("error", [EvidenceError("as it is"), KeyboardInterrupt()])
def test_deliberate_errors_and_interrupts_pass(bundle: CodeBundle, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, code_errors(bundle):
        raise error
    assert caught.value is error


def test_an_error_outside_the_code_has_no_place(bundle: CodeBundle) -> None:
    message = "the audited code failed: OSError: full"
    with pytest.raises(EstimationError, match=message), code_errors(bundle):
        raise OSError("full")


# --- stages -------------------------------------------------------------------------------------


def test_a_stage_without_a_record_is_as_declared() -> None:
    found = stage_result(stage(), None)
    assert (found.steps, found.curve, found.boundary) == (None, None, None)
    assert found.optimizer == "SGD (lr 0.1, schedule recorded, betas (0.9, 0.999), fused True)"


def test_a_recorded_stage_has_its_course(recorded: Recorded) -> None:
    found = stage_result(stage(), recorded.trajectory.stages[0])
    assert (found.steps, found.examples, found.boundary) == (6, 48, "reset")
    assert found.curve is not None
    assert found.curve.step == (0, 1, 2, 3, 4, 5)
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(6)]
    assert found.curve.learning_rate == pytest.approx(rates)
    assert found.curve.loss[0] == pytest.approx(recorded.trajectory.stages[0].steps[0].loss)
    assert found.seconds is not None
    assert found.seconds > 0


@pytest.mark.parametrize(
    "steps", [1, 2, CURVE_POINTS - 1, CURVE_POINTS, CURVE_POINTS + 1, 2 * CURVE_POINTS + 3]
)
def test_a_long_course_is_thinned_and_keeps_its_ends(
    recorded: Recorded, tmp_path: Path, steps: int
) -> None:
    one = recorded.trajectory.stages[0]

    class Long:
        header = one.header.model_copy(update={"steps": steps})

    Long.steps = tuple(_step(one.steps[0], index) for index in range(steps))  # type: ignore[attr-defined]
    curve = stage_result(stage(), Long).curve  # type: ignore[arg-type]
    assert curve is not None
    assert (curve.step[0], curve.step[-1]) == (0, steps - 1)
    assert list(curve.step) == sorted(set(curve.step))
    assert len(curve.step) <= CURVE_POINTS + 1
    assert len(curve.step) >= min(steps, CURVE_POINTS // 2)
    assert len(curve.loss) == len(curve.learning_rate) == len(curve.step)


def _step(step: Any, index: int) -> Any:
    return replace(step, index=index)


def test_a_loss_that_was_not_recorded_is_left_out(recorded: Recorded, tmp_path: Path) -> None:
    def change(rows: Rows) -> None:
        rows[2]["loss"] = None

    altered = change_steps(copy(recorded, tmp_path), "one", change)
    found = stage_result(stage(), altered.trajectory.stages[0])
    assert found.curve is not None
    assert [loss is None for loss in found.curve.loss] == [False, False, True, False, False, False]


def test_a_record_of_boundaries_has_no_course(tmp_path: Path) -> None:
    kept = train(tmp_path, [StagePlan("one")], every="boundaries")
    found = stage_result(stage(), kept.trajectory.stages[0])
    assert (found.steps, found.curve) == (6, None)


def test_what_is_declared_of_steps_is_schedule_rate_and_minibatch(audit_spec: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        one, two, three = data["stages"]
        one["optimizer"]["schedule"] = "cosine"
        two["batch_size"] = 16
        three["optimizer"]["schedule"] = "recorded"

    edit_spec(audit_spec, change)
    found = declared_of(load(audit_spec).spec)
    assert found == {
        "base": Declared(Cosine(), 0.3, 64),
        "labels": Declared(Constant(), 0.2, 16),
    }


def test_batches_held_as_tensors_are_counted(tmp_path: Path) -> None:
    model = build_line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        Recorder(
            tmp_path / "record", model, every=1, factory=build_line, load_batch=load_batch
        ) as recorder,
        recorder.stage("one", optimizer, squared, steps=3) as run,
    ):
        for step in run.steps:
            x = torch.full((4 + step, 1), 1.0)
            run.batch(tensors=x)
            optimizer.zero_grad()
            squared(model, x).backward()
            optimizer.step()
    found = stage_result(stage(), Trajectory.open(tmp_path / "record").stages[0])
    assert found.examples == 4 + 5 + 6


def test_the_recorded_boundary_is_shown(recorded: Recorded, tmp_path: Path) -> None:
    altered = change_header(
        copy(recorded, tmp_path), lambda header: header["stages"][0].update(boundary="carry")
    )
    assert stage_result(stage(), altered.trajectory.stages[0]).boundary == "carry"


def build_line() -> nn.Module:
    return nn.Linear(1, 1)


def squared(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()
