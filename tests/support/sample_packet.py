"""A whole packet on disk, signed, for tests of sealing and verifying."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from factories import minimal_spec
from said import saying
from sample_results import sample_result

from auditspec.artifacts.digest import digest_bytes
from auditspec.checks import CHECKS
from auditspec.conclusions import concluded_again
from auditspec.report.exports.html_page import render_html
from auditspec.report.exports.pdf_file import render_pdf
from auditspec.results import AuditResult, CheckResult
from auditspec.sign import certificates
from auditspec.sign.credentials import Credentials
from auditspec.sign.packet import PacketWriter
from auditspec.sign.pdf import sign_pdf
from auditspec.sign.signer import KeySigner, Signer
from auditspec.spec.models import Spec
from auditspec.verification.trust import Trust, TrustedKey

SPEC = b'auditspec: "1"\n'
RESOLVED = Spec.model_validate(minimal_spec())
"""Its policy, and how many resamples agreed, are what the conclusions go by."""


def packet_result(seed: int = 0) -> AuditResult:
    """A result about `SPEC`, whose conclusions follow from its levels and checks."""
    result = sample_result()
    run = result.run.model_copy(update={"spec_digest": digest_bytes(SPEC), "seed": seed})
    return concluded(result.model_copy(update={"run": run, "signer": None}))


def concluded(result: AuditResult) -> AuditResult:
    """A result with the verdicts, findings, and gate that it leads to, once every gate is there and passes."""
    there = {check.id for check in result.checks}
    more = tuple(
        CheckResult(
            **gate.about(),
            outcome="pass",
            reasons=(saying("nothing deviates"),),
        )
        for gate in CHECKS
        if gate.bars != "nothing" and gate.id not in there
    )
    whole = result.model_copy(update={"checks": result.checks + more})
    again = concluded_again(whole, RESOLVED)
    drawn = {"verdicts": again.verdicts, "findings": again.findings, "gate": again.gate}
    return whole.model_copy(update=drawn)


@cache
def _html(results: str) -> bytes:
    return render_html(AuditResult.model_validate_json(results)).encode()


@cache
def _pdf(results: str) -> bytes:
    return render_pdf(
        AuditResult.model_validate_json(results), results.encode(), html=_html(results).decode()
    )


def packet_files(result: AuditResult, pdf: bool | None = None) -> dict[str, bytes]:
    """The files of a packet; the PDF, which takes seconds, by default for the one usual result only."""
    results = result.model_dump_json()
    files = {
        "spec.yaml": SPEC,
        "spec.lock.json": b"{}\n",
        "spec.resolved.json": RESOLVED.model_dump_json(indent=1, by_alias=True).encode(),
        "evidence.json": b"[]\n",
        "results.json": results.encode(),
        "report.html": _html(results),
    }
    if result == packet_result() if pdf is None else pdf:
        files["report.pdf"] = _pdf(results)
    return files


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


def certified(credentials: Credentials) -> AuditResult:
    """The usual result, signed with these credentials."""
    return packet_result().model_copy(update={"signer": credentials.info})


def write_certified(destination: Path, credentials: Credentials) -> Path:
    """A packet whose PDF and envelope are signed with the same credentials."""
    result = certified(credentials)
    with PacketWriter(destination) as packet:
        for name, data in packet_files(result, pdf=True).items():
            signs = name == "report.pdf" and credentials.level is not None
            packet.write(name, sign_pdf(data, credentials) if signs else data)
        chain = [certificates.der(c) for c in credentials.chain]
        stamp = credentials.authority.stamp if credentials.authority else None
        packet.seal(credentials.signer, result, chain, stamp)
    return destination


def trusting(*signers: KeySigner, role: str = "auditor", need: int = 1) -> Trust:
    """A trust policy over these signers, all in one role."""
    holders = (
        TrustedKey(f"Signer {number}", role, signer.public_key)
        for number, signer in enumerate(signers)
    )
    return Trust(tuple(holders), {role: need})
