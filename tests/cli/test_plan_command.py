"""`auditspec plan`: forecasts from the record alone, what is counted later, and honest refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_audit import CODE, edit_code, edit_spec, lock

from auditspec.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], audit_spec: Path
) -> Callable[..., Ran]:
    monkeypatch.chdir(audit_spec.parent)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["auditspec", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        text, progress = capsys.readouterr()
        return Ran(int(caught.value.code or 0), text, progress)

    return call


def planned(run: Callable[..., Ran], *arguments: str) -> dict[str, Any]:
    ran = run("plan", "audit.yaml", "--format", "json", *arguments)
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_costs_follow_from_the_record(run: Callable[..., Ran]) -> None:
    """Stages of 12, 8, and 4 steps: replays of 12 and 4 gradients, sweeps by their closed form."""
    found = planned(run)
    cost = {e["method"]: e["gradients"] for e in found["estimators"] if e["possible"]}
    assert cost["replay"] == 12 + 4
    assert cost["displacement"] == pytest.approx(8 * 3 + 4 * 5, abs=0.01)
    assert cost["first-order"] == pytest.approx(12 * 3 + 8 * 5 + 4 * 5, abs=0.01)
    assert [c["method"] for c in found["choices"]] == ["replay"] * 3
    assert [c["gradients"] for c in found["choices"]] == [12, 4, 0]
    assert found["evidence_grade"] == "sparse"
    for estimator in found["estimators"]:
        assert estimator["needs"]
        if estimator["possible"]:
            assert estimator["seconds"] > 0
            assert estimator["memory"] > 0
            assert estimator["disk"] > 0


def test_nothing_is_executed_unless_measured(run: Callable[..., Ran], audit_spec: Path) -> None:
    edit_code(audit_spec, "FEATURES = [", "print('ran'); FEATURES = [")
    assert "ran" not in "".join(run("plan", "audit.yaml")[1:])
    measured = run("plan", "audit.yaml", "--measure")
    assert f"executing {CODE}" in measured.err
    assert "measured here" in measured.out
    assert "ran" in measured.out + measured.err


def test_a_budget_below_replay_takes_paired_replay_or_says_what_is_needed(
    run: Callable[..., Ran], audit_spec: Path
) -> None:
    """On a dense record the recorded gradients are free, so that few steps need a gradient."""
    edit_spec(audit_spec, lambda data: data["estimator"].update(budget={"gradients": 1}))
    found = planned(run)
    assert found["choices"] == []
    needed = int(found["refused"].split(" to ")[-1].split()[0])
    edit_spec(audit_spec, lambda data: data["estimator"].update(budget={"gradients": needed}))
    found = planned(run)
    assert sum(c["gradients"] for c in found["choices"]) <= needed
    text = run("plan", "audit.yaml").out
    assert "✓" in text
    for stage in ("base", "labels", "polish"):
        assert f"{stage}: " in text


def test_a_budget_is_the_whole_audits_and_its_shares_are_told(
    run: Callable[..., Ran], audit_spec: Path
) -> None:
    """24 gradients re-run the record; without float64 steps beside them, 12 are left for estimate and twin."""

    def change(data: dict[str, Any]) -> None:
        data["estimator"]["budget"] = {"gradients": 36}
        data["checks"]["precision"] = {"steps": 0}

    edit_spec(audit_spec, change)
    shares = planned(run)["budget"]
    assert (shares["total"], shares["fidelity"], shares["estimates"], shares["reserve"]) == (
        36,
        24,
        6,
        0,
    )
    text = run("plan", "audit.yaml").out
    assert "36 gradients for the whole audit (24 re-running the record, up to 6 estimates" in text
    edit_spec(audit_spec, lambda data: data["estimator"].pop("budget"))
    assert "no limit (re-running the record: 24 gradients)" in run("plan", "audit.yaml").out
    strict = run("plan", "audit.yaml", "--format", "json").out
    assert json.loads(strict, parse_constant=refuse)["budget"]["total"] is None


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_missing_evidence_is_told(run: Callable[..., Ran], audit_spec: Path) -> None:
    (audit_spec.parent / "clean.parquet").unlink()
    ran = run("plan", "audit.yaml")
    assert ran.code == 3
    assert "clean" in ran.err
    assert "Traceback" not in ran.err


def test_the_plan_is_what_the_run_spends(run: Callable[..., Ran], audit_spec: Path) -> None:
    lock(audit_spec)
    choices = planned(run)["choices"]
    assert run("run", "audit.yaml", "-o", "packet").code == 1
    results = json.loads((audit_spec.parent / "packet" / "results.json").read_text())
    assert [e["gradients"] for e in results["estimates"]] == [c["gradients"] for c in choices]
