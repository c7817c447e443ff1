"""Training under seal: an honest run passes, and a record that is not the committed one, or not newer, does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sealed_audit
from lies import forge_manifest, planted_inside
from said import said
from small_audit import edit_spec, lock, ran
from tampering import rewrite_steps

from auditspec.results import AuditResult, CheckResult


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_audit.make(tmp_path_factory.mktemp("sealed")).parent


@pytest.fixture
def spec(trained: Path, tmp_path: Path) -> Path:
    return sealed_audit.copied(trained, tmp_path / "audit")


def check(result: AuditResult, name: str) -> CheckResult:
    return next(c for c in result.checks if c.id == name)


def test_a_run_under_seal_is_told_as_committed_before_training(spec: Path) -> None:
    result = ran(spec)
    committed = check(result, "commitment")
    assert committed.outcome == "pass"
    assert [said(d.notes)[:32] for d in committed.details] == [
        f"as committed to, entry {n} of the " for n in (1, 2, 3)
    ]
    assert result.effects
    messages = [limitation.message for limitation in result.limitations]
    (price,) = [told for told in messages if told.code == "price-of-a-lie"]
    assert price.values["gradients"] == price.values["whole"] == 24  # steps of one batch
    assert "it was fabricated before it was committed to" in said(price)
    report = (spec.parent / "packet" / "report.html").read_text()
    assert "Stages are those that were committed to before they were trained" in report


def test_a_record_that_was_signed_before_the_commitment_is_refused(spec: Path) -> None:
    """The liar trains, signs that, and commits to what was trained."""
    folder = spec.parent
    for kept in ("log", "state"):
        shutil.rmtree(folder / kept)
    sealed_audit.sign(folder)
    for stage in sealed_audit.STAGES:
        sealed_audit.commit(folder, stage)
    lock(spec)
    committed = check(ran(spec), "commitment")
    assert committed.outcome == "fail"
    assert "base: what was committed to is entry 2 of the log, after" in said(committed.reasons)


def reordered(folder: Path) -> None:
    def swap(rows: list) -> None:
        rows[4]["batches"], rows[5]["batches"] = rows[5]["batches"], rows[4]["batches"]

    rewrite_steps(folder / "record", "labels", swap)


@pytest.mark.parametrize("lie", [reordered, planted_inside(1e-6)], ids=["reordered", "planted"])
def test_a_record_that_was_edited_fails_by_its_signature(
    spec: Path, lie: Callable[[Path], None]
) -> None:
    lie(spec.parent)
    forge_manifest(spec.parent / "record")
    lock(spec)
    assert check(ran(spec), "evidence-integrity").outcome == "fail"


def test_a_record_that_its_trainer_signed_again_is_another_order(spec: Path) -> None:
    reordered(spec.parent)
    forge_manifest(spec.parent / "record")
    sealed_audit.sign(spec.parent)
    lock(spec)
    committed = check(ran(spec), "commitment")
    assert (committed.outcome, said(committed.reasons)) == (
        "fail",
        "labels: differs from what was committed to in order",
    )


@pytest.mark.parametrize("gone", ["base.dsse.json.log", "record/manifest.dsse.json.log"])
def test_a_proof_of_the_log_that_is_gone_is_told(spec: Path, gone: str) -> None:
    (spec.parent / gone).unlink()
    lock(spec)
    integrity = check(ran(spec), "evidence-integrity")
    assert integrity.outcome == "fail"
    assert "never entered into the log" in said(integrity.reasons)


def test_a_commitment_of_another_trainer_is_refused(spec: Path) -> None:
    (spec.parent / "other.pub").write_bytes((spec.parent / "log.pub").read_bytes())
    edit_spec(spec, lambda data: data["artifacts"]["plan-base"].update(signed_by="other.pub"))
    assert "no signature is by the key" in said(check(ran(spec), "evidence-integrity").reasons)


def test_nothing_committed_is_said(spec: Path) -> None:
    def forget(data: dict) -> None:
        for stage in data["stages"]:
            del stage["commitment"]
            del data["artifacts"][f"plan-{stage['id']}"]

    edit_spec(spec, forget)
    lock(spec)
    result = ran(spec)
    assert check(result, "commitment").outcome == "not-run"
    limitations = said([limit.message for limit in result.limitations])
    assert "not made afterwards" in limitations
    assert "it could be made at any time" in limitations
