"""Records that no recorder writes: each is refused as evidence, in one clear reason, by no crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lies import forge_manifest
from said import said
from small_audit import lock
from tampering import Rows, folder_of, rewrite_header, rewrite_steps

from auditspec.artifacts.checkpoints import read_metadata, read_tensors, write_tensors
from auditspec.evidence import inspect_all
from auditspec.gates import run_gates
from auditspec.record.format import state_file
from auditspec.record.trajectory import Trajectory
from auditspec.results import CheckResult
from auditspec.spec.source import load
from auditspec.workplace import ALONE


def refused(spec: Path) -> CheckResult:
    """The check that fails, once the record's manifest and the lock agree with the change."""
    forge_manifest(spec.parent / "record")
    lock(spec)
    loaded = load(spec)
    found = run_gates(loaded, inspect_all(loaded), ALONE)
    (failed,) = (check for check in found.checks if check.outcome == "fail")
    return failed


def in_step(key: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[5].__setitem__(key, value)


def in_batch(key: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[5]["batches"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (in_step("groups", '[{"lr": "fast"}]'), "step 5 has no learning rate"),
        (in_step("groups", "[]"), "1 parameter group in the record's header, others at its steps"),
        (in_step("step", 9), "step 9 stands where step 5 belongs"),
        (in_step("loss", float("nan")), "cannot be read"),
        (in_step("batches", []), "labels 4-6: misses"),
        (in_batch("dataset", None), "step 5: a batch of neither rows nor tensors"),
        (in_batch("dataset", "clean"), "does not name: clean"),
        (in_batch("ids", [1000]), "labels 4-6: row 1000 of data set 'vendor'"),
        (in_batch("weight", 0.5), "labels 4-6: step 5 records a loss of"),
        (
            in_batch("rng_cpu", b"x"),
            "labels 4-6: a recorded state of a random generator cannot be used",
        ),
    ],
)
def test_steps(audit_spec: Path, change: Callable[[Rows], None], reason: str) -> None:
    rewrite_steps(audit_spec.parent / "record", "labels", change)
    assert reason in said(refused(audit_spec).reasons)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("optimizer", "NoSuch", "optimizer SGD declared, NoSuch recorded"),
        ("frozen", ["0.weight"], "labels 0-2: misses"),
        ("clip_norm", 1e-3, "labels 0-2: misses"),
        ("autocast", {"dtype": "bfloat16"}, "labels 0-2"),
        ("boundary", "carry", "optimizer state reset declared, carry recorded"),
        ("steps", 7, "7 steps are recorded"),
        ("complete", False, "labels: the stage is not recorded from end to end"),
        ("groups", [{"parameters": ["none"], "options": {"lr": 0.2}}], "none"),
    ],
)
def test_the_header_of_a_stage(audit_spec: Path, key: str, value: Any, reason: str) -> None:
    def change(header: dict[str, Any]) -> None:
        assert header["stages"][1].get(key) != value
        header["stages"][1][key] = value

    rewrite_header(audit_spec.parent / "record", change)
    found = said(refused(audit_spec).reasons)
    assert reason.replace("7 steps", "8 of 7 steps") in found


def test_the_thread_count_is_one_at_least(audit_spec: Path) -> None:
    rewrite_header(audit_spec.parent / "record", lambda header: header.update(threads=0))
    assert "threads" in said(refused(audit_spec).reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optim/nobody/momentum_buffer": "0.bias"}, "optimizer state of 'nobody'"),
        ({"optim/0.bias/momentum_buffer": "0.weight"}, "cannot work with the recorded state"),
        ({"param/nobody": "0.bias"}, "tensors differ from record.json: nobody"),
    ],
)
def test_states(audit_spec: Path, change: dict[str, str], reason: str) -> None:
    path = folder_of(audit_spec.parent / "record", "labels") / state_file(4)
    tensors = read_tensors(path)
    added = {name: tensors[f"param/{source}"].clone() for name, source in change.items()}
    write_tensors(path, tensors | added, read_metadata(path))
    found = refused(audit_spec)
    assert [d.subject for d in found.details if d.outcome == "fail"] == ["labels 2-4", "labels 4-6"]
    assert reason in said(found.reasons)


def test_a_state_under_the_name_of_another(audit_spec: Path) -> None:
    place = folder_of(audit_spec.parent / "record", "labels")
    (place / state_file(4)).write_bytes((place / state_file(6)).read_bytes())
    reason = "holds the state before step 6 of stage 'labels'"
    assert reason in said(refused(audit_spec).reasons)


def test_hyperparameters_are_those_of_the_steps(audit_spec: Path) -> None:
    """What the header says of them is held to nothing, so nothing is made of it."""
    record = audit_spec.parent / "record"

    def change(header: dict[str, Any]) -> None:
        header["stages"][1]["groups"][0]["options"] |= {"momentum": 0.0, "dampening": 0.5}

    rewrite_header(record, change)
    (group,) = Trajectory.open(record).stages[1].groups
    assert (group.options["momentum"], group.options["dampening"]) == (0.9, 0)
    held = json.loads((record / "record.json").read_text())["stages"][1]["groups"][0]["parameters"]
    assert list(group.parameters) == held
