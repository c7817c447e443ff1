"""A packet that was audited without a key is signed later, as it is or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sample_packet import packet_result, write_packet

from auditspec.cli.main import cli
from auditspec.errors import AuditspecError, EvidenceError, UsageError
from auditspec.sign import keys
from auditspec.sign.packet import decode_results
from auditspec.verification.trust import Trust, TrustedKey
from auditspec.verification.verifier import verify


@pytest.fixture
def packet(tmp_path: Path) -> Path:
    return write_packet(tmp_path / "packet", None, result=packet_result(1))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keys.write_private(tmp_path / "auditor.key", keys.generate("ecdsa-p256-sha256"))
    return tmp_path / "auditor.key"


def sealed(packet: Path, key: Path) -> None:
    ran = CliRunner().invoke(cli, ["seal", str(packet), "--key", str(key)])
    if isinstance(ran.exception, AuditspecError):
        raise ran.exception
    assert ran.exit_code == 0, ran.output


def test_it_is_signed_in_its_place(packet: Path, key: Path) -> None:
    before = {p.name: p.read_bytes() for p in packet.iterdir()}
    sealed(packet, key)
    public = keys.load_private(key).public_key()
    result = decode_results((packet / "results.json").read_bytes(), "results.json")
    assert result.signer is not None
    assert result.signer.keyid == keys.keyid(public)
    assert {
        n: (packet / n).read_bytes() for n in before if "results" not in n and "report" not in n
    } == {n: data for n, data in before.items() if "results" not in n and "report" not in n}
    assert b"UNSIGNED" in before["report.html"]
    assert b"UNSIGNED" not in (packet / "report.html").read_bytes()
    trust = Trust((TrustedKey("auditor", "auditor", public),), {"auditor": 1})
    assert verify(packet, trust).summary.startswith("valid: signed by auditor")


def test_once(packet: Path, key: Path) -> None:
    sealed(packet, key)
    with pytest.raises(UsageError, match="signed already"):
        sealed(packet, key)


@pytest.mark.parametrize("name", ["spec.yaml", "evidence.json", "spec.resolved.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_files_that_do_not_belong_together(packet: Path, key: Path, name: str, how: str) -> None:
    before = {p.name for p in packet.iterdir()}
    if how == "gone":
        (packet / name).unlink()
    else:
        (packet / name).write_bytes((packet / name).read_bytes() + b"\n")
    with pytest.raises(EvidenceError, match=name):
        sealed(packet, key)
    assert {p.name for p in packet.iterdir()} <= before


def test_a_verdict_that_does_not_follow(packet: Path, key: Path) -> None:
    results = json.loads((packet / "results.json").read_text())
    results["verdicts"][0]["confidence"] = 0.123
    (packet / "results.json").write_text(json.dumps(results))
    with pytest.raises(EvidenceError, match="are not those that levels and checks lead to"):
        sealed(packet, key)


def test_no_packet(tmp_path: Path, key: Path) -> None:
    with pytest.raises(UsageError, match="no packet"):
        sealed(tmp_path, key)
