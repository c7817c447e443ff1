"""Every record that was edited, or that no training made, is caught, and the place is named.

Each liar also makes the record's manifest consistent again, without the trainer's key: then the
re-run must find it. Where the trainer signed, the signature finds it first.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lies import LIES, Lie, forge_manifest, sign
from small_audit import edit_spec, lock

from auditspec.cli.main import main
from auditspec.evidence import inspect_all
from auditspec.results import AuditResult, Evidence
from auditspec.sign import keys
from auditspec.spec.source import load

IN_RECORD = [lie for lie in LIES if lie.in_record]


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


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_a_consistent_lie_exits_3_with_a_packet_that_names_the_place(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    lie.tell(audit_spec.parent)
    forge_manifest(audit_spec.parent / "record")
    lock(audit_spec)
    code, found = audited(audit_spec, monkeypatch)
    assert code == 3
    (failed,) = (check for check in found.checks if check.outcome == "fail")
    assert failed.id == lie.check, failed.reason
    places = tuple(detail.subject for detail in failed.details if detail.outcome == "fail")
    assert places == lie.places, failed.reason
    assert places[0] in failed.reason
    assert found.effects == ()
    assert {verdict.verdict for verdict in found.verdicts} == {"inconclusive"}
    assert f"{failed.id} failed" in found.gate.reasons
    assert places[0] in (audit_spec.parent / "packet" / "report.html").read_text()
