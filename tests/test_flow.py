"""The flow from spec to result, called as a library."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lies import forge_manifest
from said import said
from small_audit import CODE, MODULE, edit_spec, lock
from tampering import rewrite_state

from auditspec.errors import EstimationError, SpecError, UsageError
from auditspec.estimator.subbatch import combined
from auditspec.flow import run_audit, write_packet
from auditspec.planning import plan_audit
from auditspec.progress import Advance
from auditspec.record.trajectory import Trajectory
from auditspec.results import AuditResult
from auditspec.sign.packet import PacketWriter
from auditspec.spec.source import load
from auditspec.workplace import Workplace


def audited(spec: Path, **around: Any) -> AuditResult:
    return run_audit(load(spec), command="auditspec run", workplace=Workplace(**around))


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A spec's paths are relative to the spec, wherever the audit is started."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_nothing_of_the_audit_stays_behind(audit_spec: Path) -> None:
    before = torch.get_num_threads(), torch.get_rng_state(), list(sys.meta_path), set(sys.modules)
    lines: list[str] = []
    first = audited(audit_spec, announce=lines.append)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert sys.meta_path == before[2]
    assert MODULE not in sys.modules
    assert [line.split()[0] for line in lines] == ["executing"]
    again = audited(audit_spec)
    assert again.effects == first.effects
    assert again.checks == first.checks
    assert again.verdicts == first.verdicts


def test_the_result_survives_its_file(audit_spec: Path) -> None:
    found = audited(audit_spec)
    assert AuditResult.model_validate_json(found.model_dump_json()) == found
    assert {e.behavior for e in found.effects} == {b.id for b in found.behaviors}
    assert len(found.effects) == len(found.behaviors) * len(found.stages)


def test_effects_tell_how_the_deployed_model_was_made(audit_spec: Path) -> None:
    """gamma(theta_K) = effect + counterfactual, for every stage."""
    found = audited(audit_spec)
    values = {b.id: b.value for b in found.behaviors}
    for effect in found.effects:
        assert effect.value + effect.counterfactual == pytest.approx(values[effect.behavior])


def test_the_method_and_the_precision_hardly_change_the_effect(audit_spec: Path) -> None:
    exact = audited(audit_spec)
    for change in (
        {"dtype": "float64"},
        {"threads": 2},
        {"batch_size": 7},
        {"deterministic": True},
    ):
        edit_spec(audit_spec, lambda data, c=change: data["estimator"].update(c))
        other = audited(audit_spec)
        for ours, theirs in zip(other.effects, exact.effects, strict=True):
            assert ours.value == pytest.approx(theirs.value, abs=2e-4)
        assert [v.verdict for v in other.verdicts] == [v.verdict for v in exact.verdicts]


RECORD, SWEEP = 12 + 8 + 4, 8 * 3 + 4 * 5
"""Gradients of re-running the small audit's record, and of following its displacements."""


def without_spot_check(spec: Path, budget: int | None) -> AuditResult:
    def change(data: dict[str, Any]) -> None:
        data["estimator"].update(method="displacement", budget={"gradients": budget})
        data["checks"] |= {"spot-check": {"stages": 0}, "precision": {"steps": 0}}

    edit_spec(spec, change)
    return audited(spec)


def test_an_estimate_names_only_whom_exact_replay_confirms(audit_spec: Path) -> None:
    """The run without the stage is made, spot check or not, as soon as a verdict would rest on it."""
    exact = {(e.behavior, e.stage): e for e in audited(audit_spec).effects}
    found = without_spot_check(audit_spec, None)
    fault = found.verdicts[0]
    assert (fault.verdict, fault.parties) == ("attributed", ("labels",))
    paths = {p.arm: p for p in found.paths if p.behavior == "zero-as-two"}
    assert paths["omit labels",].exact
    replayed = paths["omit labels",].levels[-1]
    assert replayed == pytest.approx(exact["zero-as-two", "labels"].counterfactual)
    assert not paths["omit base",].exact


def test_an_estimate_that_nothing_confirms_names_nobody(audit_spec: Path) -> None:
    found = without_spot_check(audit_spec, RECORD + SWEEP + 1)
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert found.gate.exit_code == 5
    limits = " ".join(said(limit.message) for limit in found.limitations)
    assert "spot-check was not run" in limits
    assert "are estimates; their error" in limits


def test_displacement_with_a_spot_check_names_the_same_stage(audit_spec: Path) -> None:
    exact = {(e.behavior, e.stage): e for e in audited(audit_spec).effects}
    edit_spec(audit_spec, lambda data: data["estimator"].update(method="displacement"))
    found = audited(audit_spec)
    replayed = {e.stage: e for e in found.estimates if e.method == "replay"}
    assert set(replayed) == {"labels", "polish"}
    assert "spot check" in said(replayed["labels"].reason)
    for effect in found.effects:
        if effect.exact:
            assert effect.value == exact[effect.behavior, effect.stage].value
    wide = {(e.behavior, e.stage): e for e in found.effects}["zero-as-two", "base"]
    narrow = exact["zero-as-two", "base"]
    assert wide.high - wide.low > narrow.high - narrow.low


def test_the_present_can_be_given_but_revives_no_suppression(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = {"reason": "known", "owner": "Lab", "expires": "2023-12-31"}
    accepted["behavior"] = audited(audit_spec).findings[0].behavior
    edit_spec(audit_spec, lambda data: data.update(policy={"suppress": [accepted]}))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # before the suppression ended
    with pytest.raises(UsageError, match="'zero-as-two', which expired on 2023-12-31"):
        audited(audit_spec)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1705000000")  # after it did
    found = audited(audit_spec)
    assert found.run.created == dt.datetime.fromtimestamp(1705000000, dt.UTC)
    assert found.findings[0].suppressed is None
    assert found.gate.exit_code == 1


def test_a_present_that_is_no_number_is_told(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        audited(audit_spec)


def test_sampled_windows_are_told_as_such(audit_spec: Path) -> None:
    edit_spec(audit_spec, lambda data: data["checks"].update({"record-fidelity": {"windows": 3}}))
    found = audited(audit_spec)
    fidelity = next(c for c in found.checks if c.id == "record-fidelity")
    assert fidelity.outcome == "pass"
    assert "3 of 12 windows" in said(fidelity.reasons)
    assert "missed with probability 0.75" in said(fidelity.reasons)
    assert fidelity.gradients == 6


@pytest.mark.parametrize("method", ["auto", "paired-replay"])
def test_the_check_of_the_record_pays_for_recorded_gradients(audit_spec: Path, method: str) -> None:
    """Three pairs of a stage and a later one have two first steps each; the recorded 12 are the check's."""

    def change(data: dict[str, Any]) -> None:
        data["estimator"].update({"method": method, "budget": {"gradients": RECORD + 2 * 6}})
        data["checks"]["precision"] = {"steps": 0}

    edit_spec(audit_spec, change)
    planned = plan_audit(load(audit_spec))
    assert planned.allotment is not None
    assert (planned.allotment.fidelity, planned.allotment.estimates) == (RECORD, 6)
    found = audited(audit_spec)
    assert [c.gradients for c in planned.choices] == [6 - 2, 2, 0]
    assert found.estimates[0].method == "paired-replay"
    # left to itself it first replays the run on which a verdict rests, without `labels`
    second = "replay" if method == "auto" else "paired-replay"
    assert found.estimates[1].method == second
    checks = sum(c.gradients for c in found.checks if c.id == "off-path")
    assert found.run.gradients == pytest.approx(RECORD + 2 * 6 + checks)  # the whole budget
    fidelity = next(c for c in found.checks if c.id == "record-fidelity")
    assert fidelity.gradients == RECORD  # once: base 12, labels 8, polish 4
    assert next(c for c in found.checks if c.id == "spot-check").outcome == "not-run"


@pytest.mark.parametrize("foretold", [True, False])
def test_an_audit_by_rows_keeps_its_budget_and_says_how_far_it_may_err(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch, foretold: bool
) -> None:
    """Of two rows of sixteen the recorded run foretells little here: then nobody knows how far, and the report says so."""
    if foretold:
        monkeypatch.setattr(combined, "UNFORETOLD", 1.0)

    def change(data: dict[str, Any]) -> None:
        estimator = {"method": "sub-batch-replay", "budget": {"gradients": RECORD + 14}}
        data["estimator"].update(estimator)
        data["checks"]["precision"] = {"steps": 0}
        data["checks"]["spot-check"] = {"stages": 0}

    edit_spec(audit_spec, change)
    planned = plan_audit(load(audit_spec))
    assert planned.allotment is not None
    assert planned.allotment.estimates == 9  # and a twin of half the rows
    found = audited(audit_spec)
    assert [e.method for e in found.estimates[:2]] == ["sub-batch-replay"] * 2
    checks = sum(c.gradients for c in found.checks if c.id == "off-path")
    assert RECORD < found.run.gradients - checks <= RECORD + 14
    assert next(c for c in found.checks if c.id == "precision").outcome == "pass"
    margins = [e for e in found.effects if e.behavior == found.effects[0].behavior and not e.exact]
    assert len(margins) == 2
    if foretold:
        assert all(e.error for e in margins)
    else:
        assert [e.error for e in margins] == [None, None]
        refinement = next(c for c in found.checks if c.id == "refinement")
        assert "half of the rows do not tell the error" in said(refinement.reasons)


@pytest.mark.parametrize("method", ["auto", "paired-replay", "sub-batch-replay"])
def test_a_record_that_lies_where_an_estimate_goes_along_it_carries_no_verdict(
    audit_spec: Path, method: str
) -> None:
    """One state in the middle of `labels` is another: two windows, seen by the estimate's pass or by nobody else."""
    state = Trajectory.open(audit_spec.parent / "record").stages[1].state(4)
    moved = {n: t * 1.01 for n, t in state.parameters.items()}
    rewrite_state(audit_spec.parent / "record", "labels", 4, replace(state, parameters=moved))
    forge_manifest(audit_spec.parent / "record")
    lock(audit_spec)

    def change(data: dict[str, Any]) -> None:
        data["estimator"].update(method=method, budget={"gradients": RECORD + 14})
        data["checks"]["precision"] = {"steps": 0}

    edit_spec(audit_spec, change)
    found = audited(audit_spec)
    fidelity = next(c for c in found.checks if c.id == "record-fidelity")
    assert fidelity.outcome == "fail"
    failed = [d.subject for d in fidelity.details if d.outcome == "fail"]
    assert failed == ["labels 2-4", "labels 4-6"]
    assert sum(d.subject.split()[0] in ("base", "labels", "polish") for d in fidelity.details) >= 12
    assert fidelity.gradients == RECORD
    assert not found.effects
    assert found.gate.exit_code == 3


@pytest.mark.parametrize(
    ("change", "fidelity"), [({"windows": 3}, 6), ({"dtype": "float64"}, RECORD)], ids=str
)
def test_a_check_that_computes_other_gradients_pays_for_none(
    audit_spec: Path, change: dict[str, Any], fidelity: int
) -> None:
    """Then exact replay, of 16 gradients, is the cheapest that there is."""
    budget = fidelity + 2 * 6  # enough where the check pays

    def edit(data: dict[str, Any]) -> None:
        data["estimator"].update({"method": "paired-replay", "budget": {"gradients": budget}})
        data["checks"]["precision"] = {"steps": 0}
        if "windows" in change:
            data["checks"]["record-fidelity"] = change
        else:
            data["estimator"].update(change)

    edit_spec(audit_spec, edit)
    assert plan_audit(load(audit_spec)).refused
    found = audited(audit_spec)
    assert not found.effects
    assert found.gate.exit_code == 5
    skipped = next(c for c in found.checks if c.id == "refinement")
    assert f"an estimate needs {fidelity + 16}" in said(skipped.reasons)
    enough = {"gradients": fidelity + 16}
    edit_spec(audit_spec, lambda data: data["estimator"].update(budget=enough))
    assert audited(audit_spec).effects


def of_boundaries(spec: Path, estimator: dict[str, Any], schedule: str = "constant") -> None:
    """Train once more, recording the stages' ends alone."""
    code = spec.parent / CODE
    code.write_text(code.read_text().replace("every=2", 'every="boundaries"'))
    shutil.rmtree(spec.parent / "record")
    subprocess.run([sys.executable, CODE], cwd=spec.parent, check=True)
    lock(spec)

    def change(data: dict[str, Any]) -> None:
        data["estimator"].update(estimator)
        for stage in data["stages"]:
            stage["optimizer"]["schedule"] = schedule
            stage["batch_size"] = 16

    edit_spec(spec, change)


def test_krylov_sizes_effects_from_boundaries_and_names_nobody(
    audit_spec: Path, tmp_path: Path
) -> None:
    exact = {(e.behavior, e.stage): e for e in audited(audit_spec).effects}
    of_boundaries(audit_spec, {"method": "krylov"})
    planned, loaded = plan_audit(load(audit_spec)), load(audit_spec)
    assert [f.method for f in planned.prospects if f.possible] == ["krylov", "simulated-replay"]
    found = run_audit(loaded, command="auditspec run")
    assert found.evidence_grade == "boundaries"
    checks = {check.id: check for check in found.checks}
    assert checks["record-fidelity"].outcome == "inconclusive"
    assert checks["spot-check"].outcome == "not-run"
    assert "no steps" in said(checks["spot-check"].reasons)
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert found.gate.exit_code == 5
    assert [e.method for e in found.estimates] == ["krylov", "krylov", "replay"]
    spent = sum(e.gradients for e in found.estimates)
    assert 0 < spent <= sum(c.gradients for c in planned.choices)
    effects = {(e.behavior, e.stage): e for e in found.effects}
    assert effects["zero-as-two", "labels"].low is None
    for stage in ("labels", "polish"):
        ours, theirs = effects["zero-as-two", stage].value, exact["zero-as-two", stage].value
        assert ours == pytest.approx(theirs, rel=0.2)
    assert any("minibatches were drawn anew" in said(limit.message) for limit in found.limitations)
    with PacketWriter(tmp_path / "packet") as packet:
        write_packet(packet, found, loaded)


def test_boundaries_without_a_schedule_carry_no_estimate(audit_spec: Path) -> None:
    of_boundaries(audit_spec, {"method": "krylov"}, schedule="recorded")
    with pytest.raises(EstimationError, match="learning rates are not known") as error:
        audited(audit_spec)
    assert "optimizer.schedule" in error.value.remedy


@pytest.mark.parametrize("budget", [None, 24])
def test_boundaries_are_simulated_unasked_and_name_nobody(
    audit_spec: Path, budget: int | None
) -> None:
    exact = {(e.behavior, e.stage): e for e in audited(audit_spec).effects}
    of_boundaries(audit_spec, {"method": "auto"})
    if budget is not None:
        edit_spec(audit_spec, lambda data: data["checks"].update(precision={"steps": 0}))
        limit = {"gradients": budget}
        edit_spec(audit_spec, lambda data: data["estimator"].update(budget=limit))
    planned, loaded = plan_audit(load(audit_spec)), load(audit_spec)
    assert [c.method for c in planned.choices] == ["simulated-replay"] * 2 + ["replay"]
    found = run_audit(loaded, command="auditspec run")
    assert found.evidence_grade == "boundaries"
    checks = {check.id: check for check in found.checks}
    assert checks["record-fidelity"].outcome == "inconclusive"
    assert checks["spot-check"].outcome == "not-run"
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert [e.method for e in found.estimates] == ["simulated-replay"] * 2 + ["replay"]
    if budget is not None:
        assert 0 < sum(e.gradients for e in found.estimates) <= budget / 1.5
    for effect in found.effects:
        if effect.behavior == "zero-as-two" and effect.stage != "polish":
            assert effect.error is not None
            off = abs(effect.value - exact[effect.behavior, effect.stage].value)
            assert 0 < off <= effect.error < abs(effect.value)


def test_boundaries_without_a_schedule_are_not_estimated_unasked(audit_spec: Path) -> None:
    of_boundaries(audit_spec, {"method": "auto"}, schedule="recorded")
    assert "optimizer.schedule" in plan_audit(load(audit_spec)).refused
    found = audited(audit_spec)
    assert not found.effects
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}


def test_a_packet_holds_the_spec_as_it_was_read(audit_spec: Path, tmp_path: Path) -> None:
    loaded = load(audit_spec)
    found = run_audit(loaded, command="auditspec run")
    audit_spec.write_text("changed meanwhile")
    with PacketWriter(tmp_path / "packet") as packet:
        write_packet(packet, found, loaded)
    assert (tmp_path / "packet" / "spec.yaml").read_bytes() == loaded.text


def test_phases_are_announced_with_what_they_cost(audit_spec: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: dict[str, tuple[int | None, int]] = {}

        @contextmanager
        def phase(self, name: str, total: int | None = None) -> Iterator[Advance]:
            made = [0]

            def advance(amount: int) -> None:
                made[0] += amount

            yield advance
            self.seen[name] = (total, made[0])

    progress = Counting()
    audited(audit_spec, progress=progress)
    assert progress.seen["re-running the record"] == (24, 24)
    assert progress.seen["training without each of 2 stages"] == (16, 16)
    counted = {name: pair for name, pair in progress.seen.items() if pair[0] is not None}
    assert all(total == made for total, made in counted.values()), counted


def test_a_slice_without_rows_is_the_specs_fault(audit_spec: Path) -> None:
    edit_spec(audit_spec, lambda data: data["behaviors"][0].update(where="y == 77"))
    lines: list[str] = []
    with pytest.raises(SpecError, match="no row has y 77"):
        audited(audit_spec, announce=lines.append)
    assert lines == []  # no code was executed
