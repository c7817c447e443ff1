"""Every record that was edited, or that no training made, is caught, and the place is named.

Each liar also makes the record's manifest consistent again, without the trainer's key: then the
re-run must find it. Where the trainer signed, the signature finds it first.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployment import deployed_as
from lies import (
    ALL,
    DECLARED,
    LIES,
    STAGES,
    Lie,
    apart,
    batches_reordered,
    forge_manifest,
    last_place_of_one_weight,
    planted_and_left,
    planted_at_the_end,
    planted_inside,
    rerun_of,
    sign,
)
from said import each_said, said
from small_audit import edit_spec, lock
from tampering import change_option, copy
from torch import Tensor, nn
from training import StagePlan, build_mlp32, train

from auditspec.artifacts.checkpoints import read_tensors
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.cli.main import main
from auditspec.consistency.check import check as check_consistency
from auditspec.engine.rerun import Rerun
from auditspec.errors import SpecError
from auditspec.evidence import inspect_all
from auditspec.results import AuditResult, CheckResult, Evidence
from auditspec.sign import keys
from auditspec.spec.checks import RecordFidelity as Options
from auditspec.spec.source import load

WINDOWS = 12


def audited(spec: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, AuditResult]:
    """`auditspec run` in the audit's folder: its exit code, and what the packet says."""
    monkeypatch.chdir(spec.parent)
    monkeypatch.setattr(sys, "argv", ["auditspec", "run", "audit.yaml", "-o", "packet"])
    with pytest.raises(SystemExit) as caught:
        main()
    packet = spec.parent / "packet"
    found = AuditResult.model_validate_json((packet / "results.json").read_bytes())
    assert found.gate.exit_code == caught.value.code
    return int(caught.value.code or 0), found


@pytest.mark.parametrize(
    "lie", [lie for lie in LIES if lie.check != DECLARED], ids=lambda lie: lie.name
)
def test_a_consistent_lie_exits_3_with_a_packet_that_names_the_place(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    lie.tell(audit_spec.parent)
    forge_manifest(audit_spec.parent / "record")
    lock(audit_spec)
    code, found = audited(audit_spec, monkeypatch)
    assert code == 3
    (failed,) = (check for check in found.checks if check.outcome == "fail")
    assert failed.id == lie.check, said(failed.reasons)
    places = tuple(detail.subject for detail in failed.details if detail.outcome == "fail")
    assert places == lie.places, said(failed.reasons)
    assert places[0] in said(failed.reasons)
    assert found.effects == ()
    assert {verdict.verdict for verdict in found.verdicts} == {"inconclusive"}
    assert f"{failed.id} failed" in each_said(found.gate.reasons)
    assert places[0] in (audit_spec.parent / "packet" / "report.html").read_text()


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_no_lie_is_blamed_on_the_spec_but_what_the_spec_declares(
    audit_spec: Path, lie: Lie
) -> None:
    """What spec and record say of the same thing is told with both values: no packet, exit 2."""
    lie.tell(audit_spec.parent)
    forge_manifest(audit_spec.parent / "record")
    lock(audit_spec)
    checked = check_consistency(load(audit_spec))
    if lie.check != DECLARED:
        assert checked.spec_problems == ()
        return
    (problem,) = checked.spec_problems
    assert problem.message.startswith(lie.places)
    assert "record" in problem.message and problem.line > 1
    with pytest.raises(SpecError) as caught:
        checked.require_fitting()
    assert caught.value.exit_code == 2


def test_a_small_lie_in_a_stage_of_its_own_arithmetic_exits_5(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No window of the kind lands bitwise, so that it may be the kernels; no stage is named."""
    apart(audit_spec.parent)
    forge_manifest(audit_spec.parent / "record")
    lock(audit_spec)
    code, found = audited(audit_spec, monkeypatch)
    assert code == 5
    (open_,) = (check for check in found.checks if check.outcome == "inconclusive")
    assert open_.id == "record-fidelity"
    assert tuple(d.subject for d in open_.details if d.outcome == "inconclusive") == ALL
    assert found.effects == ()
    assert "labels 0-2: not bitwise" in capsys.readouterr().out


# --- the trainer's signature --------------------------------------------------------------------


@pytest.fixture
def signed_audit(audit_spec: Path) -> Path:
    """The trainer signed the record when it was finished, and the spec asks for that signature."""
    for name in ("trainer", "liar"):
        key = keys.generate("ed25519")
        keys.write_private(audit_spec.parent / f"{name}.key", key)
        keys.write_public(audit_spec.parent / f"{name}.pub", key.public_key())
    sign(audit_spec.parent / "record", audit_spec.parent / "trainer.key")
    edit_spec(audit_spec, lambda data: data["artifacts"]["record"].update(signed_by="trainer.pub"))
    lock(audit_spec)
    return audit_spec


def evidence_of(spec: Path) -> Evidence:
    (found,) = (item for item in inspect_all(load(spec)) if item.name == "record")
    return found


def test_an_honest_signed_record_is_verified(signed_audit: Path) -> None:
    found = evidence_of(signed_audit)
    assert (found.state, found.signed_by is None) == ("verified", False)


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie.in_record], ids=lambda lie: lie.name)
def test_an_edit_after_the_trainer_signed_is_caught_by_the_signature(
    signed_audit: Path, lie: Lie
) -> None:
    """Whether the liar leaves the manifest alone, writes it anew, or signs it with another key."""
    record = signed_audit.parent / "record"
    lie.tell(signed_audit.parent)
    lock(signed_audit)
    found = evidence_of(signed_audit)
    assert found.state == "mismatched"
    assert re.search(r"since the trainer signed|contradicts its own manifest", said(found.notes))
    assert re.search(r"0[12]-(labels|polish)/|record\.json", said(found.notes)), said(found.notes)

    forge_manifest(record)
    lock(signed_audit)
    found = evidence_of(signed_audit)
    assert (found.state, "no manifest.dsse.json" in said(found.notes)) == ("mismatched", True)

    sign(record, signed_audit.parent / "liar.key")
    lock(signed_audit)
    found = evidence_of(signed_audit)
    assert (found.state, "no signature is by the key" in said(found.notes)) == ("mismatched", True)


def test_a_signature_that_does_not_hold_exits_3_before_any_code_runs(
    signed_audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_and_left(signed_audit.parent)
    lock(signed_audit)
    code, found = audited(signed_audit, monkeypatch)
    assert code == 3
    assert found.checks[0].outcome == "fail"
    assert "01-labels/state-000004.safetensors" in said(found.checks[0].reasons)
    assert "executing" not in capsys.readouterr().err


# --- a machine that rounds otherwise ------------------------------------------------------------


def elsewhere(rerun: Rerun) -> Rerun:
    """The same training on a machine that sums in another order."""
    objective = rerun.functions.objectives["base"]

    def reversed_sum(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return objective(model, tuple(tensor.flip(0) for tensor in batch))

    rerun.functions = replace(rerun.functions, objectives=dict.fromkeys(STAGES, reversed_sum))
    return rerun


def check(folder: Path, *, other: bool = False, **options: Any) -> CheckResult:
    rerun = elsewhere(rerun_of(folder)) if other else rerun_of(folder)
    weights = read_tensors(folder / "model.safetensors")
    return RecordFidelity(rerun, deployed_as(weights), Options(**options)).run()


def test_an_honest_record_passes_on_either_machine(audit_spec: Path) -> None:
    here, there = check(audit_spec.parent), check(audit_spec.parent, other=True)
    assert (here.outcome, here.statistic) == ("pass", 0.0)
    assert there.outcome == "pass"
    assert there.statistic is not None
    assert 0 < there.statistic < 1e-6
    assert "none lands bitwise" in said(there.reasons)
    assert "bitwise" not in said(here.reasons)
    windows = [d for d in there.details if re.fullmatch(r"\w+ \d+-\d+", d.subject)]
    assert all(d.statistic for d in windows)


@pytest.mark.parametrize("plant", [planted_inside, planted_at_the_end])
@pytest.mark.parametrize(("size", "outcome"), [(0.9e-4, "pass"), (1.1e-4, "fail")])
def test_where_no_window_lands_bitwise_the_threshold_decides(
    audit_spec: Path, plant: Any, size: float, outcome: str
) -> None:
    """The smallest edit that is seen: 1e-4 of the weights' norm; here it is 1e-6 and less."""
    plant(size)(audit_spec.parent)
    assert check(audit_spec.parent, other=True).outcome == outcome
    assert check(audit_spec.parent).outcome == "fail"


HIDDEN_ELSEWHERE = {
    "another weight decay, by 1e-6",
    "a small edit inside",
    "the last place of one weight",
    "a small edit at the end",
    "a small edit left alone",
    "a prettier loss",
}


@pytest.mark.parametrize(
    "lie", [lie for lie in LIES if lie.check == "record-fidelity"], ids=lambda lie: lie.name
)
def test_what_another_rounding_hides(audit_spec: Path, lie: Lie) -> None:
    lie.tell(audit_spec.parent)
    outcome = "pass" if lie.name in HIDDEN_ELSEWHERE else "fail"
    assert check(audit_spec.parent, other=True).outcome == outcome


# --- witnesses ----------------------------------------------------------------------------------

SGD = {"lr": 0.1, "momentum": 0.9}


def test_a_stage_of_other_arithmetic_is_inconclusive(tmp_path: Path) -> None:
    """All of Adam's windows are off by a trifle: another rate, or kernels that round otherwise."""
    plan = (StagePlan("one", options=SGD), StagePlan("two", optimizer="Adam", options={"lr": 0.01}))
    recorded = copy(train(tmp_path / "honest", plan, build_mlp32), tmp_path)
    for step in range(6):
        (held,) = recorded.trajectory.stages[1].steps[step].groups
        recorded = change_option(recorded, "two", step, lr=held["lr"] * (1 + 1e-4))
    weights = dict(recorded.model.state_dict())
    found = RecordFidelity(recorded.rerun(), deployed_as(weights), Options()).run()
    assert found.outcome == "inconclusive"
    assert said(found.reasons).startswith(
        "two 0-2: not bitwise, though windows of other arithmetic are (3)"
    )
    assert [d.subject for d in found.details if d.outcome == "inconclusive"] == [
        "two 0-2",
        "two 2-4",
        "two 4-6",
    ]
    accepted = RecordFidelity(recorded.rerun(), deployed_as(weights), Options(threshold=1e-4)).run()
    assert accepted.outcome == "pass", said(accepted.reasons)


def test_weights_that_stand_still_bear_no_witness(tmp_path: Path) -> None:
    """Where nothing moves, every machine lands bitwise."""
    plan = (
        StagePlan("base", options={"lr": 0.1}),
        StagePlan("labels", options={"lr": 1e-9}, shift=1),
    )
    recorded = train(tmp_path, plan, build_mlp32)
    found = RecordFidelity(
        elsewhere(recorded.rerun()), deployed_as(recorded.model.state_dict()), Options()
    ).run()
    landed = {d.subject: d.statistic for d in found.details if re.search(r"\d+-\d+", d.subject)}
    assert landed["labels 0-2"] == 0
    assert landed["base 0-2"]
    assert found.outcome == "pass", said(found.reasons)


def test_an_explicit_threshold_asks_no_witness(audit_spec: Path) -> None:
    last_place_of_one_weight(audit_spec.parent)
    assert check(audit_spec.parent).outcome == "fail"
    assert check(audit_spec.parent, threshold=1e-6).outcome == "pass"
    assert check(audit_spec.parent, threshold=1e-15).outcome == "fail"


# --- sampled windows ----------------------------------------------------------------------------


def two_sided(hits: int, trials: int, p: float) -> float:
    """Probability, under the binomial distribution, of a count no likelier than this one."""
    chances = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    return sum(c for c in chances if c <= chances[hits] * (1 + 1e-9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lie", "windows"),
    [
        (batches_reordered, 3),
        (batches_reordered, 6),
        (batches_reordered, 11),
        (last_place_of_one_weight, 6),
    ],
)
def test_an_altered_window_is_missed_as_often_as_the_report_says(
    audit_spec: Path, lie: Any, windows: int
) -> None:
    """Fifty audits; a fair draw fails this test once in a million runs."""
    lie(audit_spec.parent)
    trials, missed = 50, 0
    stated = 1 - windows / WINDOWS
    for _ in range(trials):
        found = check(audit_spec.parent, windows=windows)
        if found.outcome == "pass":
            missed += 1
            assert f"{windows} of {WINDOWS} windows" in said(found.reasons)
            assert f"missed with probability {stated:.2g}" in said(found.reasons)
        else:
            assert found.outcome == "fail"
            assert [d.subject for d in found.details if d.outcome != "pass"] == (
                ["labels 4-6"] if lie is batches_reordered else ["labels 2-4"]
            )
    assert two_sided(missed, trials, stated) > 1e-6, f"{missed} of {trials}, {stated:.2f} stated"
