"""Runs of a plain loop, which saved whatever it liked, trained again by a function of their code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
import unrecorded_run
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from auditspec.artifacts.manifest import digest_path
from auditspec.cli.main import cli
from auditspec.errors import AuditspecError, EvidenceError, UsageError
from auditspec.importing.from_spec import import_as_specified
from auditspec.record.format import RecordHeader
from auditspec.record.trajectory import Trajectory
from auditspec.spec.source import load

AGAIN = f"{unrecorded_run.MODULE}:again"
Saved = dict[str, dict[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run")
    return folder, unrecorded_run.trained(folder)


@pytest.fixture
def run(finished: tuple[Path, Any], tmp_path: Path) -> tuple[Path, Saved]:
    """Where the run's code and data lie, and what was there after every step."""
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "run", finished[1]


def imported(
    folder: Path, saved: dict[str, Path], train: str = AGAIN, **options: Any
) -> RecordHeader:
    spec = load(unrecorded_run.specify(folder, **options))
    return import_as_specified(spec, saved, folder / "record", run=train)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / f"{unrecorded_run.MODULE}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def refused(
    folder: Path, saved: dict[str, Path], kind: type[AuditspecError], **options: Any
) -> str:
    """What is said of an import that fails; nothing of it stays."""
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(kind) as said:
        imported(folder, saved, **options)
    assert said.value.remedy
    after = {path.name for path in folder.iterdir()}
    assert after - before <= {"audit.yaml", "__pycache__"}
    return said.value.message


# --- what was saved -------------------------------------------------------------------------------


def by_step(folder: Path, made: dict[int, dict[str, Any]]) -> Path:
    """Beside an average of the weights."""
    steps = {step: {**made[step], "ema": made[1]["model"]} for step in (2, 6)}
    torch.save(steps, folder.with_suffix(".pt"))
    return folder.with_suffix(".pt")


def a_list(folder: Path, made: dict[int, dict[str, Any]]) -> Path:
    torch.save([made[step] for step in (1, 4, 6)], folder.with_suffix(".pt"))
    return folder.with_suffix(".pt")


def of_a_wrapper(folder: Path, made: dict[int, dict[str, Any]]) -> Path:
    weights = {f"module.{name}": tensor for name, tensor in made[6]["model"].items()}
    folder.mkdir()
    save_file(weights, folder / "step-6.safetensors")
    (folder / "last.pt").write_bytes(b"a copy without a step in its name")
    return folder


def distributed(folder: Path, made: dict[int, dict[str, Any]]) -> Path:
    state = {"model": made[6]["model"], "optim": made[6]["optimizer"]}
    with pytest.warns(UserWarning):  # torch says that it is one process
        torch.distributed.checkpoint.save(state, checkpoint_id=str(folder / "step-6"))
    return folder


FORMS: dict[str, tuple[Callable[[Path, dict[int, dict[str, Any]]], Path], list[int], bool]] = {
    "a file by step": (by_step, [2, 6], True),
    "a list": (a_list, [1, 4, 6], True),
    "names of a wrapper": (of_a_wrapper, [6], False),
    "torch.distributed.checkpoint": (distributed, [6], True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_checkpoint_is_met_bit_for_bit(run: tuple[Path, Saved], form: str) -> None:
    folder, made = run
    write, steps, optimizer = FORMS[form]
    saved = unrecorded_run.weights_alone(folder, made)
    saved["base"] = write(folder / "checkpoints", made["base"])
    again = imported(folder, saved).regenerated
    assert again is not None
    assert [(c.stage, c.step) for c in again.checkpoints] == [
        *(("base", step) for step in steps),
        ("labels", 4),
    ]
    assert all(c.bitwise and c.weights == c.buffers == 0 for c in again.checkpoints)
    first = again.checkpoints[0]
    assert first.optimizer == (0 if optimizer else None)
    assert first.random is (True if optimizer and form != "torch.distributed.checkpoint" else None)
    record = Trajectory.open(folder / "record")
    assert record.grade == "regenerated"
    assert [len(stage.state_steps) for stage in record.stages] == [7, 5]
    assert {b.dataset for step in record.stages[0].steps for b in step.batches} == {"clean"}


def test_the_command_says_how_each_checkpoint_was_met(run: tuple[Path, Saved]) -> None:
    folder, made = run
    spec = unrecorded_run.specify(folder)
    saved = unrecorded_run.weights_alone(folder, made)
    given = [f"--checkpoints={stage}={path}" for stage, path in saved.items()]
    done = CliRunner().invoke(
        cli, ["record", "import", str(spec), f"--run={AGAIN}", *given], catch_exceptions=False
    )
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["checkpoint", "of", "step", "weights", "buffers", "optimizer", "random"],
        ["base", "6", "bitwise", "bitwise", "-", "-"],
        ["labels", "4", "bitwise", "bitwise", "-", "-"],
    ]
    told = [line for line in done.stderr.splitlines() if line.startswith("checkpoint")]
    assert told[0] == "checkpoint of base, step 6: met, bitwise"
    shown = CliRunner().invoke(
        cli, ["record", "show", str(folder / "record")], catch_exceptions=False
    )
    assert done.stdout in shown.stdout


def test_first_weights_under_the_names_of_a_wrapper(run: tuple[Path, Saved]) -> None:
    folder, made = run
    weights = load_file(folder / "first.safetensors")
    save_file({f"model.{name}": t for name, t in weights.items()}, folder / "wrapped.safetensors")
    saved = unrecorded_run.weights_alone(folder, made)
    again = imported(folder, saved, first="wrapped.safetensors").regenerated
    assert again is not None
    assert all(c.bitwise for c in again.checkpoints)


def test_threads_that_the_function_sets(run: tuple[Path, Saved]) -> None:
    """An audit computes with as many."""
    folder, made = run
    edit(folder, "def again(recorder):", "def again(recorder):\n    torch.set_num_threads(3)")
    before = torch.get_num_threads()
    try:
        assert imported(folder, unrecorded_run.weights_alone(folder, made)).threads == 3
    finally:
        torch.set_num_threads(before)


# --- a run that is another ------------------------------------------------------------------------


def test_another_learning_rate_leaves_boundaries(run: tuple[Path, Saved]) -> None:
    """The record goes from checkpoint to checkpoint; what lies between is said to be another run's."""
    folder, made = run
    edit(folder, '("clean", 6, 0.05)', '("clean", 6, 0.04)')
    saved = unrecorded_run.weights_alone(folder, made)
    saved["base"] = a_list(folder / "checkpoints", made["base"])
    header = imported(folder, saved)
    again = header.regenerated
    assert again is not None
    assert header.every == "boundaries"
    assert again.arguments == ("optimizer.lr",)
    assert [(c.stage, c.step) for c in again.missed] == [("base", 1), ("base", 4), ("base", 6)]
    assert again.checkpoints[-1].bitwise, "the stage after it goes on from the checkpoint"
    record = Trajectory.open(folder / "record")
    assert record.header.every == "boundaries"
    assert [stage.state_steps for stage in record.stages] == [(0, 6), (0, 4)]
    for stage in record.stages:
        wanted = made[stage.id][stage.header.steps]
        last = stage.last
        assert all(torch.equal(t, wanted["model"][n]) for n, t in last.parameters.items())
        assert all(torch.equal(t, wanted["model"][n]) for n, t in last.buffers.items())
    moments = made["base"][6]["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(record.stages[0].last.optimizer_state["0.weight"]["exp_avg"], moments)


def test_each_part_that_differs_is_told_apart(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    odd = {**made["base"][6], "rng_state": torch.zeros(5056, dtype=torch.uint8)}
    odd["model"] = {n: t + 1 if n == "1.running_mean" else t for n, t in odd["model"].items()}
    odd["optimizer"] = torch.optim.SGD([torch.zeros(1)], 0.1, momentum=0.9).state_dict()
    odd["optimizer"]["state"] = {0: {"momentum_buffer": torch.zeros(6, 3)}}
    saved["base"] = folder / "checkpoints"
    saved["base"].mkdir()
    torch.save(odd, saved["base"] / "checkpoint_0006.pth")
    header = imported(folder, saved)
    assert header.regenerated is not None
    first, second = header.regenerated.checkpoints
    assert (first.weights, first.optimizer, first.random) == (0, "other", False)
    assert isinstance(first.buffers, float)
    assert first.buffers > 0.1
    assert not first.met
    assert second.weights == 0
    assert not second.met, "statistics go on from those that the checkpoint has"
    assert header.every == "boundaries"
    moments = Trajectory.open(folder / "record").stages[0].last.optimizer_state
    assert {key for slots in moments.values() for key in slots} >= {"exp_avg"}, "not SGD's"


# --- what is refused ------------------------------------------------------------------------------


def test_what_the_checkpoints_are_not(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    base, weights = saved["base"], made["base"][6]["model"]
    shutil.copy(base / "step-6.safetensors", base / "step-6-v1.safetensors")
    assert "a second checkpoint of step 6" in refused(folder, saved, EvidenceError)
    (base / "step-6-v1.safetensors").rename(base / "step-9.safetensors")
    said = refused(folder, saved, EvidenceError)
    assert "is of step 9, and the run made again ends stage 'base' after 6 steps" in said
    (base / "step-9.safetensors").rename(base / "epoch-9.safetensors")
    assert "says no step" in refused(folder, saved, EvidenceError)
    save_file({"other.weight": weights["0.weight"]}, base / "step-6.safetensors")
    (base / "epoch-9.safetensors").unlink()
    assert "its weights are not those of the model" in refused(folder, saved, EvidenceError)
    save_file({**weights, "0.weight": torch.zeros(2, 2)}, base / "step-6.safetensors")
    assert "not those of the model: 0.weight" in refused(folder, saved, EvidenceError)
    (base / "step-6.safetensors").rename(base / "final.safetensors")
    assert "holds no checkpoints" in refused(folder, saved, EvidenceError)
    assert "no such folder" in refused(folder, {**saved, "base": folder / "no"}, EvidenceError)


def test_a_checkpoint_that_is_counted_from_zero(run: tuple[Path, Saved]) -> None:
    """The counter of its optimizer tells."""
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    saved["base"] = folder / "checkpoints"
    saved["base"].mkdir()
    torch.save({**made["base"][6], "step": 5}, saved["base"] / "step-5.pt")
    said = refused(folder, saved, EvidenceError)
    assert "is of step 5 by its name, and was saved after 6 steps of stage 'base'" in said


def test_other_first_weights_than_those_of_step_0(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    save_file(made["base"][1]["model"], saved["base"] / "step-0.safetensors")
    assert "does not begin with these weights" in refused(folder, saved, EvidenceError)


def test_a_pickle_runs_nothing(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    saved["base"] = folder / "step=6.ckpt"
    mark = folder / "ran"
    torch.save({"state_dict": {"w": Hostile(mark)}, "global_step": 6}, saved["base"])
    assert "refuses it" in refused(folder, saved, EvidenceError)
    assert not mark.exists()


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_what_the_function_is_not(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)

    def said(train: str | None, kind: type[AuditspecError]) -> str:
        return refused(folder, saved, kind, train=train)

    module = unrecorded_run.MODULE
    assert "names no function" in said("again", UsageError)
    assert "has no 'agian'" in said(f"{module}:agian", EvidenceError)
    assert "has no module 'elsewhere'" in said("elsewhere:again", EvidenceError)
    assert "cannot be called with the recorder alone" in said(f"{module}:train", UsageError)
    assert "its objective builds no trainer" in said(None, UsageError)


WRITES = {
    "torch.save": 'torch.save(model.state_dict(), HERE / "saved/base/step-6.safetensors")',
    "a file": '(HERE / "saved/base/log.txt").write_text("step")',
    "deleting": '__import__("shutil").rmtree(HERE / "saved")',
}


@pytest.mark.parametrize("how", WRITES)
def test_saved_checkpoints_stay_as_they_are(run: tuple[Path, Saved], how: str) -> None:
    folder, made = run
    edit(folder, "optimizer.zero_grad()", WRITES[how])
    saved = unrecorded_run.weights_alone(folder, made)
    before = digest_path(folder / "saved")
    assert "where the run's checkpoints lie" in refused(folder, saved, EvidenceError)
    assert digest_path(folder / "saved") == before


def test_what_native_code_writes_is_found_out(run: tuple[Path, Saved]) -> None:
    folder, made = run
    edit(folder, "from pathlib import Path", "from pathlib import Path\nimport safetensors")
    native = 'safetensors.serialize_file({}, str(HERE / "saved/base/step-8.safetensors"))'
    edit(folder, "optimizer.zero_grad()", f"optimizer.zero_grad(); {native}")
    saved = unrecorded_run.weights_alone(folder, made)
    assert "step-8.safetensors: the code that trains again wrote" in refused(
        folder, saved, EvidenceError
    )


EDITS: dict[str, tuple[str, str, str]] = {
    "no stage": ("def again(recorder):", "def again(recorder, STAGES={}):", "no stage 'base'"),
    "another stage": (
        "with recorder.stage(name,",
        'with recorder.stage("x" + name,',
        "records the stage 'xbase' where the spec has 'base'",
    ),
    "an error": (
        "optimizer.zero_grad()",
        "optimizer.zero_gard()",
        f"AttributeError at {unrecorded_run.MODULE}.py:41",
    ),
    "an exit": ("optimizer.zero_grad()", "raise SystemExit(3)", "SystemExit at unrecorded"),
    "an error of the factory": (
        "    return nn.Sequential(",
        "    return nn.Sequentail(",
        f"at {unrecorded_run.MODULE}.py:12",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_code_that_fails_is_said_where(run: tuple[Path, Saved], name: str) -> None:
    folder, made = run
    old, new, wanted = EDITS[name]
    edit(folder, old, new)
    saved = unrecorded_run.weights_alone(folder, made)
    assert wanted in refused(folder, saved, EvidenceError)


AN_EXIT_OF_IT = """\
def again(recorder):
    try:
        once_more(recorder)
    except KeyboardInterrupt:
        raise SystemExit(1)


def once_more(recorder):"""


@pytest.mark.parametrize("by_lightning", [False, True])
def test_an_interrupt_leaves_nothing(run: tuple[Path, Saved], by_lightning: bool) -> None:
    folder, made = run
    edit(folder, "optimizer.zero_grad()", "raise KeyboardInterrupt")
    if by_lightning:  # which makes an exit of it
        edit(folder, "def again(recorder):", AN_EXIT_OF_IT)
    saved = unrecorded_run.weights_alone(folder, made)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        imported(folder, saved)
    assert {path.name for path in folder.iterdir()} - before <= {"audit.yaml", "__pycache__"}


def test_where_a_record_cannot_stand(run: tuple[Path, Saved]) -> None:
    folder, made = run
    saved = unrecorded_run.weights_alone(folder, made)
    said = refused(folder, {**saved, "base": folder}, UsageError)
    assert "lies among the checkpoints" in said
    (folder / "record").mkdir()
    assert "is there already" in refused(folder, saved, UsageError)
