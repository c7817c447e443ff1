from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import auditspec
from auditspec.artifacts.checkpoints import read_tensors
from auditspec.artifacts.digest import digest_file
from auditspec.errors import EvidenceError, UsageError


def test_every_name_of_the_face_loads_and_says_what_it_is() -> None:
    for name in auditspec.__all__:
        member = getattr(auditspec, name)
        assert name == "__version__" or member.__doc__, name
    assert dir(auditspec) == sorted(auditspec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = auditspec.nothing


def test_importing_costs_nothing() -> None:
    script = "import sys, auditspec; print([m for m in ('torch', 'pandas', 'pydantic') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_from_a_spec_to_a_verified_packet(audit_spec: Path, tmp_path: Path) -> None:
    loaded = auditspec.load_spec(audit_spec)
    assert [choice.stage for choice in auditspec.plan(loaded).choices]
    result = auditspec.audit(loaded, out=tmp_path / "packet", unsigned=True)
    assert isinstance(result, auditspec.AuditResult)
    assert result.run.command == "auditspec.audit"
    verification = auditspec.verify(tmp_path / "packet")
    assert verification.error is not None  # nobody signed it
    with pytest.raises(UsageError):
        auditspec.audit(loaded, out=tmp_path / "packet", unsigned=True)


def test_reports_again(audit_spec: Path, tmp_path: Path) -> None:
    auditspec.audit(audit_spec, out=tmp_path / "packet", unsigned=True)
    files = auditspec.render(tmp_path / "packet" / "results.json", tmp_path / "copy")
    assert [path.name for path in files] == ["report.html", "report.pdf"]
    assert (tmp_path / "copy" / "report.html").read_bytes() == (
        tmp_path / "packet" / "report.html"
    ).read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        auditspec.render(tmp_path / "packet" / "results.json", tmp_path / "copy")
    with pytest.raises(UsageError, match="no export is named 'docx'"):
        auditspec.render(tmp_path / "packet" / "results.json", tmp_path, formats=["docx"])


def test_an_audit_without_a_packet(audit_spec: Path, tmp_path: Path) -> None:
    result = auditspec.audit(audit_spec, cache=tmp_path / "cache")
    again = auditspec.audit(audit_spec, cache=tmp_path / "cache")
    assert again.verdicts == result.verdicts
    assert any(estimate.cached for estimate in again.estimates)


def test_a_log_without_a_trust_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a log needs a trust file"):
        auditspec.verify(tmp_path, log=tmp_path)


def test_a_checkpoint_as_audits_read_it(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    digest = auditspec.save_checkpoint(tmp_path / "m.safetensors", model)
    assert digest == digest_file(tmp_path / "m.safetensors")[0]
    read = read_tensors(tmp_path / "m.safetensors", digest)
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
    assert auditspec.save_checkpoint(tmp_path / "n.safetensors", model.state_dict()) == digest
    with pytest.raises(EvidenceError, match="safetensors"):
        auditspec.save_checkpoint(tmp_path / "m.bin", model)
    with pytest.raises(UsageError, match="cannot be written"):
        auditspec.save_checkpoint(tmp_path / "none" / "m.safetensors", model)
