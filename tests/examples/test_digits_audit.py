"""The digits example from training to a verified packet, as its README tells it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
AUDITSPEC = [sys.executable, "-c", "from auditspec.cli.main import main; main()"]
FAULT, COUNTED = "three-read-as-eight", "threes-counted"
ACCURACY, CONTROL = "overall-accuracy", "zero-read-as-six"


def run(folder: Path, *arguments: str, expect: int) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [*AUDITSPEC, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == expect, ran.stderr + ran.stdout
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, trained, with a key and its artifacts pinned."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("build*", "*.lock.json"))
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    run(folder, "keys", "new", "build/auditor", expect=0)
    run(folder, "digest", "--lock", "audit.yaml", expect=0)
    assert "warning" not in run(folder, "validate", "audit.yaml", expect=0).stderr
    return folder


@pytest.fixture(scope="module")
def exact(folder: Path) -> dict[str, Any]:
    """The audit by exact replay, as the example asks for it."""
    run(folder, "run", "audit.yaml", "-o", "out", expect=1)
    found: dict[str, Any] = json.loads((folder / "out" / "results.json").read_text())
    return found


def effects(result: dict[str, Any], behavior: str) -> dict[str, dict[str, Any]]:
    return {
        arm.removeprefix("omit "): e
        for e in result["effects"]
        if e["behavior"] == behavior
        for arm in e["arm"]
    }


def verdicts(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {v["behavior"]: v for v in result["verdicts"]}


def test_the_planted_stage_is_named_and_the_control_is_not(exact: dict[str, Any]) -> None:
    for name in (FAULT, COUNTED):
        assert verdicts(exact)[name]["verdict"] == "attributed"
        assert verdicts(exact)[name]["parties"] == ["vendor-labels"]
        assert verdicts(exact)[name]["ending"] == "removed"
    assert {verdicts(exact)[name]["verdict"] for name in (ACCURACY, CONTROL)} == {"absent"}
    assert [f["behavior"] for f in exact["findings"]] == [FAULT, COUNTED]
    assert {e["method"] for e in exact["estimates"]} == {"replay"}
    assert exact["gate"]["exit_code"] == 1
    outcomes = {c["id"]: c["outcome"] for c in exact["checks"]}
    assert all(outcomes[id_] == "pass" for id_ in ("record-fidelity", "optimizer-match"))
    assert outcomes["initial-weights"] == "pass"  # the declared seed draws them again


def test_the_packet_verifies_under_its_trust_file_and_no_other(
    folder: Path, exact: dict[str, Any]
) -> None:
    run(folder, "verify", "out", "--trust", "build/trust.yaml", expect=0)
    (folder / "other").mkdir()
    run(folder, "keys", "new", "other/stranger", expect=0)
    run(folder, "verify", "out", "--trust", "other/trust.yaml", expect=7)
    results = folder / "out" / "results.json"
    kept = results.read_bytes()
    results.write_bytes(kept.replace(b"vendor-labels", b"vendor-label5"))
    run(folder, "verify", "out", "--trust", "build/trust.yaml", expect=6)
    results.write_bytes(kept)


def test_displacement_orders_the_stages_as_replay_does(folder: Path, exact: dict[str, Any]) -> None:
    """The linear estimate of every stage, and the same order; whom it names, a replay confirms."""
    spec = (folder / "audit.yaml").read_text()
    assert "method: auto" in spec
    spec = spec.replace("method: auto", "method: displacement")
    spec = spec.replace("gradients: 2000", "gradients: 20000")
    spec += "\nchecks: {spot-check: {stages: 0}}\n"
    (folder / "estimated.yaml").write_text(spec)
    shutil.copy(folder / "audit.lock.json", folder / "estimated.lock.json")
    run(folder, "run", "estimated.yaml", "-o", "estimated", "--unsigned", expect=1)
    found = json.loads((folder / "estimated" / "results.json").read_text())
    ours, theirs = effects(found, FAULT), effects(exact, FAULT)
    assert [e["exact"] for e in ours.values()] == [False] * 4 + [True]
    assert all(e["exact"] for e in theirs.values())

    def order(table: dict[str, dict[str, Any]]) -> list[str]:
        return sorted(table, key=lambda stage: table[stage]["value"])

    assert order(ours) == order(theirs)
    estimate, truth = (np.array([e["value"] for e in t.values()]) for t in (ours, theirs))
    assert np.argmax(estimate) == list(theirs).index("vendor-labels")
    assert (np.abs(estimate - truth)[:-1] > 0).all()  # really estimated
    assert verdicts(found)[FAULT]["parties"] == ["vendor-labels"]
    replayed = {tuple(p["arm"]) for p in found["paths"] if p["exact"] and p["behavior"] == FAULT}
    assert ("omit vendor-labels",) in replayed
