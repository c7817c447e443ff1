"""A record that will not hold is refused while it is made, and the likely cause is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import naive_loops
import pytest
import torch
from checked_training import build as hanging
from checkers import InProcess
from naive_loops import CASES
from training import (
    StagePlan,
    build_dropped,
    build_mlp,
    build_mlp32,
    build_normed,
    build_tied,
    own_loss,
    train,
)

from auditspec.errors import RecordError
from auditspec.record.describe import function_ref
from auditspec.record.format import FunctionRef
from auditspec.record.trajectory import Trajectory
from auditspec.recorder import recheck, self_check
from auditspec.recorder.causes import CAUSES, cause
from auditspec.recorder.question import INSIDE, Answer


@pytest.fixture(autouse=True)
def _checking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(self_check.SWITCH, "1")


@pytest.fixture
def _hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANG", "1")
    monkeypatch.setattr(self_check, "PATIENCE", 1.0)
    monkeypatch.setattr(self_check, "LONGER", 0.0)


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "Child", InProcess)


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("name", CASES)
def test_a_naive_loop_is_refused_by_its_cause_or_recorded_faithfully(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Answer] = []
    concluded = self_check.SelfCheck._conclude

    def noting(check: Any, answer: Answer) -> None:
        given.append(answer)
        concluded(check, answer)

    monkeypatch.setattr(self_check.SelfCheck, "_conclude", noting)
    code = CASES[name].code
    if code is None:
        checked = naive_loops.train(tmp_path, CASES[name]).header.stages[0].self_check
        assert checked is not None and checked.outcome == "bitwise"
        return
    with pytest.raises(RecordError) as refused:
        naive_loops.train(tmp_path, CASES[name])
    assert given[-1].code == code, given[-1]
    assert given[-1].cause in refused.value.message
    assert refused.value.remedy


CLEAN: dict[str, dict[str, Any]] = {
    "dropout": {"build": build_dropped, "plan": [StagePlan("one", steps=20)]},
    "batch norm": {"build": build_normed, "plan": [StagePlan("one", steps=20)]},
    "tied weights": {"build": build_tied, "plan": [StagePlan("one", steps=20)]},
    "accumulation, a schedule, clipping": {
        "plan": [StagePlan("one", steps=20, microbatches=2, clip_norm=0.3, split=True)]
    },
    "bfloat16": {
        "build": build_mlp32,
        "plan": [StagePlan("one", steps=20, autocast=torch.bfloat16)],
    },
    "gradients kept as zeros": {"plan": [StagePlan("one", steps=12, keep_gradients=True)]},
    "frozen and dropped parameters": {
        "plan": [StagePlan("one", steps=12, frozen=("one.",), dropped=("two.bias",))]
    },
    "a loss of one's own": {"objective": own_loss, "plan": [StagePlan("one", steps=12)]},
    "a new head": {
        "plan": [StagePlan("one", steps=4), StagePlan("two", steps=12, extend="new_head")]
    },
    "adapters": {
        "plan": [StagePlan("one", steps=4), StagePlan("two", steps=12, extend="add_adapters")]
    },
    "state carried over": {
        "plan": [StagePlan("one", steps=9), StagePlan("two", steps=9, carry=True)]
    },
    "every state": {"every": 1, "plan": [StagePlan("one", steps=20)]},
    "one step": {"every": 50, "plan": [StagePlan("one", steps=1)]},
    "an own optimizer": {
        "plan": [StagePlan("one", steps=12, optimizer="Lion", options={"lr": 0.01})]
    },
}


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_loop_passes_bitwise(name: str, tmp_path: Path) -> None:
    given = {"build": build_mlp, "every": 5} | CLEAN[name]
    recorded = train(tmp_path, **given)
    first = [
        min(len(stage.steps), 8 if given["every"] == 1 else given["every"] * 2)
        for stage in recorded.trajectory.stages
    ]
    for stage, steps in zip(recorded.trajectory.stages, first, strict=True):
        checked = stage.header.self_check
        assert checked is not None
        assert (checked.outcome, checked.deviation) == ("bitwise", 0.0)
        assert checked.steps == min(steps, stage.header.steps)


SUPPORT = Path(__file__).parents[1] / "support"


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SUPPORT / script), *arguments],
        env=os.environ | {"AUDITSPEC_SELF_CHECK": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkers_of(process: subprocess.Popen[str]) -> list[int]:
    """Ids of the processes that check what a process trains."""
    ids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            asked = b"auditspec.recorder.recheck" in (stat.parent / "cmdline").read_bytes()
            if asked and parent == process.pid:
                ids.append(int(stat.parent.name))
    return ids


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_fresh_process_lands_where_training_was(tmp_path: Path) -> None:
    said, error = start(
        "checked_training.py", str(tmp_path), "an average of weights in a model of its own"
    ).communicate()
    assert "bitwise" in said, error


@pytest.mark.slow
def test_a_model_that_its_factory_compiled_lands_in_a_fresh_process(tmp_path: Path) -> None:
    said, error = start(
        "checked_training.py", str(tmp_path), "compiled by the factory"
    ).communicate()
    assert "bitwise" in said, error


@pytest.mark.slow
def test_a_model_that_was_compiled_inside_the_stage_is_refused(tmp_path: Path) -> None:
    _, error = start(
        "checked_training.py", str(tmp_path), "compiled inside the stage"
    ).communicate()
    assert "the model is compiled on one side only" in error


@pytest.mark.slow
def test_a_fresh_process_refuses_within_a_minute(tmp_path: Path) -> None:
    began = time.monotonic()
    _, error = start("checked_training.py", str(tmp_path), "no zero_grad").communicate()
    assert "zero_grad is missing" in error
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_checker_outlives_the_training(tmp_path: Path, number: signal.Signals) -> None:
    process = start("checked_training.py", str(tmp_path), HANG="1")
    assert process.stdout is not None
    assert process.stdout.readline() == "checking\n"
    wait_until(lambda: checkers_of(process))
    (checker,) = checkers_of(process)
    process.send_signal(number)
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{checker}").exists())


@pytest.mark.usefixtures("_hanging")
def test_a_checker_that_hangs_is_ended_and_the_record_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = naive_loops.Case(None, lambda loop: loop.make(), build=hanging)
    began = time.monotonic()
    stage = naive_loops.train(tmp_path, case).header.stages[0]
    assert time.monotonic() - began < 30
    assert stage.self_check is not None and stage.self_check.outcome == "unchecked"
    assert "did not end in time" in str(stage.self_check.reason)
    assert "self-check was not made" in caplog.text
    assert Trajectory.open(tmp_path / "record").header.stages[0].self_check == stage.self_check


def test_a_loss_that_is_multiplied_by_nothing_finite_is_refused(tmp_path: Path) -> None:
    case = naive_loops.Case(None, lambda o: o.make(on_loss=lambda loss: loss * float("nan")))
    with pytest.raises(RecordError, match="step 0: its loss was multiplied by nan"):
        naive_loops.train(tmp_path, case)


def test_a_checker_that_is_killed_is_no_fault_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIE", "1")
    case = naive_loops.Case(None, lambda loop: loop.make(), build=hanging)
    checked = naive_loops.train(tmp_path, case).header.stages[0].self_check
    assert checked is not None and checked.outcome == "unchecked"
    assert "ended with -9" in str(checked.reason)


@pytest.mark.slow
def test_what_a_notebook_trains_by_code_that_it_wrote_lands_in_a_fresh_process(
    tmp_path: Path,
) -> None:
    ran = subprocess.run(
        [sys.executable, "-"],
        input=(SUPPORT / "notebook_cells.py").read_text(),
        cwd=tmp_path,
        env=os.environ | {"AUDITSPEC_SELF_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "training_code:build_model outcome='bitwise'" in ran.stdout, ran.stderr


@pytest.mark.slow
def test_a_script_that_trains_when_imported_is_refused_at_once(tmp_path: Path) -> None:
    process = start("unguarded_training.py", UNGUARDED=str(tmp_path))
    _, error = process.communicate()
    assert 'if __name__ == "__main__"' in error
    assert "trains when it is imported" in error
    assert (tmp_path / "times").read_text() == "trained\n"


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize(
    ("module", "code"), [("gone", "not-importable"), ("exits", "not-importable")]
)
def test_code_that_cannot_be_imported_is_refused(
    module: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def renamed(ref: FunctionRef) -> FunctionRef:
        return ref.model_copy(update={"name": f"{module}:build"})

    real = recheck.imported
    with pytest.raises(recheck.NotLoadedError) as refused:
        real(renamed(function_ref(hanging)))
    assert refused.value.cause.code == code
    assert module in refused.value.message


@pytest.mark.usefixtures("_in_process")
def test_code_that_was_edited_meanwhile_is_no_fault_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(function: Any) -> FunctionRef:
        return function_ref(function).model_copy(update={"digest": "sha256:" + "0" * 64})

    monkeypatch.setattr(recheck, "function_ref", edited)
    case = CASES["an average of weights in a model of its own"]
    checked = naive_loops.train(tmp_path, case).header.stages[0].self_check
    assert checked is not None and checked.outcome == "unchecked"
    assert "it was edited" in str(checked.reason)


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize(
    "error", [MemoryError("no room"), torch.OutOfMemoryError("no room"), NameError("no room")]
)
def test_what_hinders_the_check_is_no_fault_of_the_record(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(recheck, "functions_of", full)
    if isinstance(error, NameError):  # of this package: a bug
        monkeypatch.setattr(recheck, "_is_a_bug", lambda given: given is error)
    case = CASES["an average of weights in a model of its own"]
    checked = naive_loops.train(tmp_path, case).header.stages[0].self_check
    assert checked is not None and checked.outcome == "unchecked"
    assert "no room" in str(checked.reason)


def test_no_process_to_be_had_is_no_fault_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    case = CASES["an average of weights in a model of its own"]
    checked = naive_loops.train(tmp_path, case).header.stages[0].self_check
    assert checked is not None and "no process could be started" in str(checked.reason)


@pytest.mark.usefixtures("_in_process")
def test_a_resumed_run_checks_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(self_check.SWITCH, "0")
    plan = [StagePlan("one", steps=30)]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, plan, every=5, stop_at=("one", 17))
    monkeypatch.setenv(self_check.SWITCH, "1")
    (stage,) = train(tmp_path, plan, every=5, resume=True).trajectory.stages
    assert stage.header.self_check is not None
    assert (stage.header.self_check.outcome, stage.header.self_check.steps) == ("bitwise", 10)


def test_the_probe_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "Child", InProcess)
    plan = [StagePlan("one", steps=12, microbatches=2, clip_norm=0.3)]
    seen = train(tmp_path / "seen", plan, build_dropped, every=4).model
    monkeypatch.setenv(self_check.SWITCH, "0")
    unseen = train(tmp_path / "unseen", plan, build_dropped, every=4).model
    assert all(
        torch.equal(p, q) for p, q in zip(seen.parameters(), unseen.parameters(), strict=True)
    )


def test_a_recorder_made_inside_a_check_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INSIDE, "1")
    with pytest.raises(RecordError, match="trains when it is imported"):
        naive_loops.train(tmp_path, CASES["run.loss called twice"])


@pytest.mark.usefixtures("_in_process")
def test_the_environment_and_the_recorder_turn_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["a loss term"]
    monkeypatch.setenv(self_check.SWITCH, "0")
    assert naive_loops.train(tmp_path / "a", case).header.stages[0].self_check is None
    monkeypatch.setenv(self_check.SWITCH, "1")
    off = naive_loops.train(tmp_path / "b", case, self_check=False)
    assert off.header.stages[0].self_check is None


def test_every_cause_has_a_loop() -> None:
    elsewhere = {"trains-on-import", "not-importable", "compile"}
    assert {case.code for case in CASES.values()} - {None} == CAUSES.keys() - elsewhere


def test_every_cause_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "record.md").read_text(encoding="utf-8")
    section = text.partition("## The self-check")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, flags=re.M) == [*CAUSES]


def test_causes_read_as_they_should() -> None:
    assert cause("clipping", 3, limit="0.1").message.startswith("step 3: gradients were clipped")
