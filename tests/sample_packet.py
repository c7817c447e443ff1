"""A whole packet on disk, signed, for tests of sealing and verifying."""

from __future__ import annotations

from pathlib import Path

from sample_results import sample_result

from auditspec.artifacts.digest import digest_bytes
from auditspec.results import AuditResult
from auditspec.sign.packet import PacketWriter
from auditspec.sign.signer import KeySigner, Signer
from auditspec.sign.trust import Trust, TrustedKey

SPEC = b'auditspec: "1"\n'


def packet_result(seed: int = 0) -> AuditResult:
    """A result about `SPEC`."""
    result = sample_result()
    run = result.run.model_copy(update={"spec_digest": digest_bytes(SPEC), "seed": seed})
    return result.model_copy(update={"run": run, "signer": None})


def packet_files(result: AuditResult) -> dict[str, bytes]:
    return {
        "spec.yaml": SPEC,
        "spec.lock.json": b"{}\n",
        "spec.resolved.json": b"{}\n",
        "evidence.json": b"[]\n",
        "results.json": result.model_dump_json().encode(),
        "report.html": b"<!doctype html>\n",
        "report.pdf": b"%PDF-1.7\n",
    }


def write_packet(
    destination: Path,
    signer: Signer | None,
    *,
    result: AuditResult | None = None,
    replace: bool = False,
) -> Path:
    result = result or packet_result()
    with PacketWriter(destination, replace=replace) as packet:
        for name, data in packet_files(result).items():
            packet.write(name, data)
        if signer is not None:
            packet.seal(signer, result)
    return destination


def trusting(*signers: KeySigner, role: str = "auditor", need: int = 1) -> Trust:
    """A trust policy over these signers, all in one role."""
    holders = (
        TrustedKey(f"Signer {number}", role, signer.public_key)
        for number, signer in enumerate(signers)
    )
    return Trust(tuple(holders), {role: need})
