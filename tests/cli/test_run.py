"""`auditspec run`, from spec to packet, on a small audit that was really trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from said import each_said, said
from small_audit import ARTIFACTS, CODE, edit_code, edit_spec, lock

from auditspec.artifacts.digest import digest_file
from auditspec.cli.main import main
from auditspec.results import SEVERITIES, AuditResult, Isolation
from auditspec.sign import keys

PACKET = {
    "environment.cdx.json",
    "evidence.json",
    "report.html",
    "results.json",
    "spec.lock.json",
    "spec.resolved.json",
    "spec.yaml",
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], audit_spec: Path
) -> Run:
    """`auditspec run audit.yaml -o packet` in the audit's folder, as the console script does."""
    monkeypatch.chdir(audit_spec.parent)

    def call(*arguments: str, spec: str = "audit.yaml", out: str | None = "packet") -> Ran:
        place = [] if out is None else ["-o", out]
        monkeypatch.setattr(sys, "argv", ["auditspec", "run", spec, *place, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        text, progress = capsys.readouterr()
        return Ran(int(caught.value.code or 0), text, progress)

    return call


def results(spec: Path, packet: str = "packet") -> AuditResult:
    return AuditResult.model_validate_json((spec.parent / packet / "results.json").read_bytes())


def policy(spec: Path, **fields: Any) -> None:
    edit_spec(spec, lambda data: data.update(policy=fields))


def agree(ran: Ran, spec: Path) -> AuditResult:
    """The exit code, what is printed, and the packet say the same."""
    found = results(spec)
    assert found.gate.exit_code == ran.code
    assert found.gate.passed == (ran.code == 0)
    word = "passed" if ran.code == 0 else "failed"
    assert f"policy gate {word} (exit {ran.code})" in ran.out
    lines = ran.out.splitlines()
    for verdict in found.verdicts:
        assert any(verdict.behavior in line and verdict.verdict in line for line in lines)
    return found


# --- exit codes ---------------------------------------------------------------------------------


def off_path(found: AuditResult) -> float:
    """Gradients that looking at the objectives away from the recorded weights took."""
    (check,) = (c for c in found.checks if c.id == "off-path")
    assert check.gradients < 24  # less than making the record's steps once
    return check.gradients


def test_a_planted_fault_fails_the_gate_and_names_its_stage(run: Run, audit_spec: Path) -> None:
    ran = run()
    found = agree(ran, audit_spec)
    assert ran.code == 1
    fault, control = found.verdicts
    assert (fault.verdict, fault.parties) == ("attributed", ("labels",))
    assert control.verdict == "no-effect"
    assert [f.id for f in found.findings] == ["F-1"]
    assert {p.name for p in (audit_spec.parent / "packet").iterdir()} == PACKET
    assert {c.id: c.outcome for c in found.checks} == {
        "evidence-integrity": "pass",
        "optimizer-match": "pass",
        "data-provenance": "pass",
        "record-fidelity": "pass",
        "initial-weights": "inconclusive",  # nobody declares anything
        "model-outputs": "pass",
        "convergence": "pass",
        "refinement": "pass",
        "spot-check": "pass",
        "sampling": "pass",
        "evaluation-noise": "pass",
        "linearity": "pass",
        "precision": "pass",
        "batching": "pass",
        "additivity": "pass",
        "placebo": "fail",  # of so short a run, random displacements do as much
        "off-path": "pass",
        "asked-again": "not-run",  # the code runs in the tests' own process
        "data-use": "pass",
        "commitment": "not-run",
        "memorization": "inconclusive",
    }
    assert found.evidence_grade == "sparse"
    # One pass to check the record; replays of 12 and of 4; 4 steps in two precisions.
    assert found.run.gradients == pytest.approx(24 + 16 + 8 + off_path(found))
    assert [e.gradients for e in found.estimates] == [12, 4, 0]
    assert [(s.id, s.steps, s.examples) for s in found.stages] == [
        ("base", 12, 192),
        ("labels", 8, 128),
        ("polish", 4, 64),
    ]
    assert all(e.pinned_in == "audit.lock.json" for e in found.evidence)


def test_a_policy_that_stops_nothing_passes(run: Run, audit_spec: Path) -> None:
    policy(audit_spec, fail_on=["severity>=critical"])
    ran = run()
    assert ran.code == 0
    agree(ran, audit_spec)


def test_the_command_line_may_say_what_fails(run: Run, audit_spec: Path) -> None:
    policy(audit_spec, fail_on=["severity>=low"], inconclusive="pass")
    assert run().code == 1
    assert run("--fail-on", "critical", "--force").code == 0
    found = results(audit_spec)
    assert found.findings  # what was found does not depend on the policy
    assert said(found.gate.policy) == "fails on findings of critical severity or above"
    assert "--fail-on critical" in found.run.command
    assert run("--fail-on", "never", "--force").code == 0
    assert said(results(audit_spec).gate.policy) == "fails on bad evidence only"
    assert run("--fail-on", "severe", "--force").code == 2


def test_every_severity_may_be_named_on_the_command_line() -> None:
    from auditspec.cli.run import run as command

    (option,) = (p for p in command.params if p.name == "fail_on")
    assert list(option.type.choices) == [*SEVERITIES, "never"]  # type: ignore[attr-defined]


def test_a_suppressed_finding_passes_until_it_expires(run: Run, audit_spec: Path) -> None:
    held = {"behavior": "zero-as-two", "reason": "known", "owner": "Lead"}
    policy(audit_spec, suppress=[held | {"expires": "2999-01-01"}])
    assert run().code == 0
    assert agree(run("--force"), audit_spec).findings[0].suppressed is not None
    policy(audit_spec, suppress=[held | {"expires": "2020-01-01"}])
    assert run("--force").code == 1


@pytest.mark.parametrize(("inconclusive", "code"), [("fail", 5), ("pass", 0)])
def test_doubt_fails_only_where_the_policy_says_so(
    run: Run, audit_spec: Path, inconclusive: str, code: int
) -> None:
    """The tolerance is set to the effect itself, so that no sample could decide."""
    run()
    effect = next(e.value for e in results(audit_spec).effects if e.stage == "labels")

    def change(data: dict[str, Any]) -> None:
        data["behaviors"][0]["concern"]["tolerance"] = effect
        data["policy"] = {"inconclusive": inconclusive}

    edit_spec(audit_spec, change)
    ran = run("--force")
    assert ran.code == code
    verdict = agree(ran, audit_spec).verdicts[0]
    assert verdict.verdict == "inconclusive"
    assert "of the resamples" in said(verdict.reasons)
    assert verdict.settle[0].code == "settle-examples"
    assert all(f"because {reason}" in ran.out for reason in each_said(verdict.reasons))


def test_nothing_pinned_names_no_stage(run: Run, audit_spec: Path) -> None:
    (audit_spec.parent / "audit.lock.json").unlink()
    ran = run()
    found = agree(ran, audit_spec)
    assert ran.code == 5
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert {e.state for e in found.evidence} == {"declared"}
    assert "evidence-not-pinned" in {limit.message.code for limit in found.limitations}


def test_usage_and_spec_errors_come_before_any_work(run: Run, audit_spec: Path) -> None:
    assert run(spec="other.yaml").code == 2
    assert run("--format", "xml").code == 2
    edit_spec(audit_spec, lambda data: data["stages"][0].update(ownr="x"))
    ran = run()
    assert ran.code == 2
    assert "AS012" in ran.err
    assert not (audit_spec.parent / "packet").exists()


# --- evidence -----------------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    """One byte of a file, changed."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x01
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_changed_byte_in_any_artifact_is_told_in_a_packet(
    run: Run, audit_spec: Path, name: str
) -> None:
    path = audit_spec.parent / ARTIFACTS[name]
    if path.is_dir():
        path = sorted(path.rglob("state-*.safetensors"))[-1]
    flip(path, -1)
    ran = run()
    assert ran.code == 3
    found = agree(ran, audit_spec)
    assert f"{name} ({ARTIFACTS[name]}) is mismatched" in ran.out
    assert [e.name for e in found.evidence if e.state == "mismatched"] == [name]
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert not found.effects
    assert "executing" not in ran.err  # no code runs on bad evidence
    assert {p.name for p in (audit_spec.parent / "packet").iterdir()} == PACKET
    assert name in (audit_spec.parent / "packet" / "report.html").read_text()


@pytest.mark.parametrize("name", ["code", "record", "final", "holdout"])
def test_a_missing_artifact_is_told_in_a_packet(run: Run, audit_spec: Path, name: str) -> None:
    path = audit_spec.parent / ARTIFACTS[name]
    path.rename(audit_spec.parent / "elsewhere")
    ran = run()
    assert ran.code == 3
    assert f"{name} ({ARTIFACTS[name]}) is missing" in ran.out
    states = {e.name: e.state for e in agree(ran, audit_spec).evidence}
    assert states.pop(name) == "missing"
    assert set(states.values()) == {"verified"}


def test_pinned_bytes_that_are_no_checkpoint(run: Run, audit_spec: Path) -> None:
    (audit_spec.parent / "model.safetensors").write_bytes(b"not a checkpoint")
    lock(audit_spec)
    ran = run()
    assert ran.code == 3
    assert "evidence-integrity" in said(agree(ran, audit_spec).gate.reasons)
    assert "not a sound .safetensors file" in ran.out


def test_another_models_checkpoint_fails_the_record(run: Run, audit_spec: Path) -> None:
    states = sorted((audit_spec.parent / "record").rglob("state-*.safetensors"))
    from auditspec.artifacts.checkpoints import read_tensors, write_tensors

    held = read_tensors(states[0])
    write_tensors(
        audit_spec.parent / "model.safetensors",
        {n.removeprefix("param/"): t for n, t in held.items() if n.startswith("param/")},
    )
    lock(audit_spec)
    ran = run()
    assert ran.code == 3
    assert "check failed: record-fidelity: deployed checkpoint" in ran.out
    assert agree(ran, audit_spec).effects == ()


def test_code_that_did_not_train_this_record_fails(run: Run, audit_spec: Path) -> None:
    """Its digest is right; re-running the record shows another loss."""
    edit_code(
        audit_spec, "F.cross_entropy(model(batch[0])", "1.01 * F.cross_entropy(model(batch[0])"
    )
    ran = run()
    assert ran.code == 3
    assert "check failed: record-fidelity: base 0-2" in ran.out
    agree(ran, audit_spec)


# --- audited code that fails --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    return model(batch[0])", "    return model(batch[7])", "tuple index out of range"),
        ("    return F.cross_entropy(", "    return 1 / 0 + F.cross_entropy(", "ZeroDivisionError"),
        ("    return model(batch[0])", "    raise SystemExit(0)", "SystemExit"),
        ("    return model(batch[0])", "    raise KeyError('x')", "KeyError"),
        (
            "    return nn.Sequential(",
            "    open('/nowhere/x')\n    return nn.Sequential(",
            "/nowhere/x",
        ),
    ],
)
def test_code_that_raises_is_an_error_with_its_line(
    run: Run, audit_spec: Path, old: str, new: str, line: str
) -> None:
    edit_code(audit_spec, old, new)
    number = 1 + (audit_spec.parent / CODE).read_text().split(new)[0].count("\n")
    ran = run()
    assert (ran.code, ran.out) == (4, "")
    assert f"{CODE}:{number}" in ran.err
    assert line in ran.err
    assert "Traceback" not in ran.err
    assert not (audit_spec.parent / "packet").exists()
    assert [p.name for p in audit_spec.parent.glob(".packet*")] == []


@pytest.mark.parametrize(
    "new",
    [
        "raise RuntimeError('at import')",
        "raise SystemExit(0)",
        "def (",
    ],
)
def test_code_that_cannot_be_imported_is_bad_evidence(run: Run, audit_spec: Path, new: str) -> None:
    edit_code(audit_spec, "import numpy as np", new)
    ran = run()
    assert ran.code == 3
    assert f"{CODE}:3" in ran.out
    assert "Traceback" not in ran.err
    assert agree(ran, audit_spec).run.isolation == Isolation(process=False)  # it ran so far


def test_what_the_code_prints_is_not_data(run: Run, audit_spec: Path) -> None:
    edit_code(
        audit_spec, "    return model(batch[0])", "    print('chatter')\n    return model(batch[0])"
    )
    ran = run("--format", "json")
    assert json.loads(ran.out)["exit_code"] == ran.code == 1
    assert "chatter" in ran.err


def test_code_is_listed_before_it_runs(run: Run, audit_spec: Path) -> None:
    edit_code(audit_spec, "import numpy as np", "raise RuntimeError('it runs')")
    ran = run()
    digest = results(audit_spec).evidence[0].found
    assert f"executing {CODE} ({digest})" in ran.err


# --- output -------------------------------------------------------------------------------------


def test_json_says_what_the_packet_says(run: Run, audit_spec: Path) -> None:
    ran = run("--format", "json")
    summary = json.loads(ran.out)
    found = results(audit_spec)
    assert summary["exit_code"] == ran.code == found.gate.exit_code == 1
    assert summary["passed"] is False
    assert summary["signed"] is False
    assert [v["verdict"] for v in summary["verdicts"]] == ["attributed", "no-effect"]
    assert {Path(f).name for f in summary["files"]} == PACKET
    (audit_spec.parent / "clean.parquet").unlink()
    bad = run("--format", "json", "--force")
    assert json.loads(bad.out)["exit_code"] == bad.code == 3


def test_stdout_is_data_and_stderr_progress(run: Run) -> None:
    loud, quiet = run(), run("--force", "--quiet")
    assert loud.out == quiet.out
    assert "executing" not in loud.out
    # Whoever asks for silence is still told what code runs.
    assert [line.split()[0] for line in quiet.err.splitlines()] == ["executing"]


def test_an_existing_folder_is_refused_before_any_work(run: Run, audit_spec: Path) -> None:
    taken = audit_spec.parent / "packet"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    for options in ((), ("--force",)):
        ran = run(*options)
        assert (ran.code, ran.out) == (2, "")
        assert "executing" not in ran.err
        assert [p.name for p in taken.iterdir()] == ["notes.txt"]


def test_force_replaces_a_packet_and_nothing_else_does(run: Run, audit_spec: Path) -> None:
    assert run().code == 1
    before = (audit_spec.parent / "packet" / "results.json").read_bytes()
    refused = run()
    assert (refused.code, refused.out) == (2, "")
    assert (audit_spec.parent / "packet" / "results.json").read_bytes() == before
    policy(audit_spec, fail_on=[])
    assert run("--force").code == 0
    assert results(audit_spec).gate.exit_code == 0


def test_a_failed_run_leaves_the_old_packet(run: Run, audit_spec: Path) -> None:
    run()
    before = (audit_spec.parent / "packet" / "results.json").read_bytes()
    edit_code(audit_spec, "    return model(batch[0])", "    raise ValueError('no')")
    assert run("--force").code == 4
    assert (audit_spec.parent / "packet" / "results.json").read_bytes() == before


def test_no_code_lists_and_refuses(run: Run, audit_spec: Path) -> None:
    code = audit_spec.parent / "small_training.py"
    ran = run("--no-code")
    assert (ran.code, ran.out) == (2, "")
    assert f"not executing small_training.py ({digest_file(code)[0]})" in ran.err
    assert "--no-code forbids" in ran.err
    assert not (audit_spec.parent / "packet").exists()


# --- signing ------------------------------------------------------------------------------------


def sign_with(spec: Path, name: str = "auditor.key") -> None:
    edit_spec(spec, lambda data: data.update(signing={"key": name}))


@pytest.mark.parametrize("key", ["missing", "public", "garbage", "folder"])
def test_a_broken_key_is_told_before_any_work(run: Run, audit_spec: Path, key: str) -> None:
    path = audit_spec.parent / "auditor.key"
    match key:
        case "public":
            keys.write_public(path, keys.generate("ed25519").public_key())
        case "garbage":
            path.write_text("-----BEGIN PRIVATE KEY-----\nno\n")
            path.chmod(0o600)
        case "folder":
            path.mkdir()
    sign_with(audit_spec)
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "error[AS091]" in ran.err and "auditor.key" in ran.err
    assert "executing" not in ran.err
    assert not (audit_spec.parent / "packet").exists()
    assert run("--unsigned").code == 1


def test_a_signed_packet_verifies_and_an_unsigned_one_says_so(
    run: Run, audit_spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.write_private(audit_spec.parent / "auditor.key", keys.generate("ecdsa-p256-sha256"))
    sign_with(audit_spec)
    signed = run()
    assert "\nsigned\n" in signed.out
    assert (audit_spec.parent / "packet" / "packet.dsse.json").exists()

    def verify() -> int:
        monkeypatch.setattr(sys, "argv", ["auditspec", "verify", "packet"])
        with pytest.raises(SystemExit) as caught:
            main()
        capsys.readouterr()
        return int(caught.value.code or 0)

    assert verify() == 7  # intact, signer unknown
    flip(audit_spec.parent / "packet" / "results.json", 40)
    assert verify() == 6
    # the policy of the command line is the packet's own: its gate follows from it
    assert run("--fail-on", "never", "--force").code == 0
    assert verify() == 7
    unsigned = run("--unsigned", "--force")
    assert "\nUNSIGNED\n" in unsigned.out
    assert results(audit_spec).signer is None
    assert not (audit_spec.parent / "packet" / "packet.dsse.json").exists()


# --- processes ----------------------------------------------------------------------------------

START = [sys.executable, "-c", "from auditspec.cli.main import main; main()"]
COMMAND = [*START, "run", "audit.yaml", "-o", "packet"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_written_packet(audit_spec: Path) -> None:
    """Killed at several moments: before torch is there, while it computes, and while it writes."""
    folder = audit_spec.parent
    optimizer_state: list[Callable[[subprocess.Popen[str]], None]] = [
        lambda process: time.sleep(0.4),
        lambda process: wait_for(lambda: bool(list(folder.glob(".packet*"))), process),
        lambda process: wait_for_line(process, "executing"),
        lambda process: wait_for(lambda: bool(list(folder.glob(".packet*/*"))), process),
        lambda process: wait_for(lambda: bool(list(folder.glob(".packet*/report.html"))), process),
    ]
    for moment in optimizer_state:
        with subprocess.Popen(
            COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            moment(process)
            process.send_signal(signal.SIGKILL)
        packet = folder / "packet"
        if packet.exists():  # it was whole before the signal arrived
            assert {p.name for p in packet.iterdir()} == PACKET
            results(audit_spec)
            for path in packet.iterdir():
                path.unlink()
            packet.rmdir()
    ran = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert {p.name for p in (folder / "packet").iterdir()} == PACKET
    assert list(folder.glob(".packet*")) == []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.002)


def wait_for_line(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    assert any(word in line for line in process.stderr)


INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])",
]
"""Runs a command with SIGINT as it is by default: a script's background job inherits that it is ignored."""


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_leaves_nothing(audit_spec: Path) -> None:
    folder = audit_spec.parent
    with subprocess.Popen(
        [*INTERRUPTIBLE, *COMMAND],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_line(process, "executing")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert list(folder.glob("*packet*")) == []


@pytest.mark.slow
def test_two_runs_give_the_same_results_but_for_times(audit_spec: Path) -> None:
    folder = audit_spec.parent
    texts = []
    for name in ("one", "two"):
        subprocess.run(
            [*START, "run", "audit.yaml", "-o", name, "--quiet", "--no-cache"],
            cwd=folder,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
            capture_output=True,
            check=False,
        )
        found = json.loads((folder / name / "results.json").read_text())
        assert found["run"].pop("seconds") > 0
        assert found["run"].pop("command").endswith(f"-o {name} --quiet --no-cache")
        for estimate in found["estimates"]:
            estimate.pop("seconds")
        texts.append(json.dumps(found))
        assert found["run"]["created"] == "2023-11-14T22:13:20Z"
    assert texts[0] == texts[1]


# --- the cache ----------------------------------------------------------------------------------


def test_another_behaviour_makes_no_estimate_again(run: Run, audit_spec: Path) -> None:
    run()
    first = results(audit_spec)
    assert not any(e.cached for e in first.estimates)

    def more(data: dict[str, Any]) -> None:
        data["behaviors"].append(data["behaviors"][0] | {"id": "again", "where": "y != 0"})
        data["checks"]["sampling"]["resamples"] = 300

    edit_spec(audit_spec, more)
    run("--force")
    second = results(audit_spec)
    assert all(e.cached for e in second.estimates)
    # the checks of the record, of the precision, and of the objectives
    assert second.run.gradients == pytest.approx(24 + 8 + off_path(second))
    held = {(e.behavior, e.stage): e.value for e in second.effects}
    assert all(held[e.behavior, e.stage] == e.value for e in first.effects)
    run("--force", "--no-cache")
    anew = results(audit_spec)
    assert not any(e.cached for e in anew.estimates)
    assert anew.effects == second.effects


def test_a_changed_artifact_makes_its_estimates_again(run: Run, audit_spec: Path) -> None:
    run()
    edit_code(audit_spec, "FEATURES = [", "EXTRA = 1\nFEATURES = [")
    run("--force")
    assert not any(e.cached for e in results(audit_spec).estimates)


def test_contributions_say_when_a_behaviour_was_made(run: Run, audit_spec: Path) -> None:
    """Their sums are the first-order effects, which the tangent gives independently."""
    edit_spec(audit_spec, lambda data: data["estimator"].update(contributions=True))
    run()
    made = {c.stage: c for c in results(audit_spec).contributions}
    assert {c.behavior for c in results(audit_spec).contributions} == {"zero-as-two"}
    assert [len(made[s].step) for s in ("base", "labels", "polish")] == [12, 8, 4]
    assert "first-order contributions" in (audit_spec.parent / "packet/report.html").read_text()
    edit_spec(audit_spec, lambda data: data["estimator"].update(method="first-order"))
    run("--force")
    for effect in results(audit_spec).effects:
        if effect.behavior == "zero-as-two" and not effect.exact:
            assert made[effect.stage].total == pytest.approx(effect.value, rel=1e-3)
            assert made[effect.stage].total == pytest.approx(sum(made[effect.stage].value))


def test_a_budget_below_replay_is_estimated_and_spot_checked(run: Run, audit_spec: Path) -> None:
    """Paired replay names the stage only where exact replay confirms it; its error is in the interval."""
    edit_spec(audit_spec, lambda data: data["estimator"].update(method="paired-replay"))
    run()
    found = results(audit_spec)
    assert {e.stage: e.method for e in found.estimates}["polish"] == "replay"
    assert all(e.error is not None for e in found.effects)
    fault = found.verdicts[0]
    assert (fault.verdict, fault.parties) == ("attributed", ("labels",))
