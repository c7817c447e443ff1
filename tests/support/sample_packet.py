"""A whole packet on disk, signed, for tests of sealing and verifying."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from factories import SPEC_TEXT
from said import saying
from sample_results import sample_result

from auditspec.artifacts.digest import digest_bytes
from auditspec.checks import CHECKS
from auditspec.conclusions import concluded_again
from auditspec.report.exports import Source
from auditspec.report.exports.html_page import render_html
from auditspec.report.exports.pdf_file import render_pdf
from auditspec.report.renderer import renderer
from auditspec.results import AuditResult, CheckResult
from auditspec.sign import certificates
from auditspec.sign.contents import accompanying_files
from auditspec.sign.credentials import Credentials
from auditspec.sign.packet import PacketWriter
from auditspec.sign.pdf import sign_pdf
from auditspec.sign.signer import KeySigner, Signer
from auditspec.spec.source import parse
from auditspec.verification.trust import Trust, TrustedKey

SPEC = SPEC_TEXT.encode()
PAGE_SPEC = SPEC + b"report: {formats: [html]}\n"
"""The same without the PDF, which takes seconds."""
RESOLVED = parse(SPEC, Path("spec.yaml")).spec
"""Its policy, and how many resamples agreed, are what the conclusions go by."""
RENDERER = renderer()


def packet_result(seed: int = 0) -> AuditResult:
    """A result about `SPEC`, or `PAGE_SPEC` for other seeds, whose conclusions follow from its levels and checks."""
    result = sample_result()
    digest = digest_bytes(PAGE_SPEC if seed else SPEC)
    about = {"spec_digest": digest, "seed": seed, "renderer": RENDERER}
    run = result.run.model_copy(update=about)
    return concluded(result.model_copy(update={"run": run, "signer": None}))


def without_pdf(result: AuditResult) -> AuditResult:
    """The same results, about a spec that asks for HTML alone."""
    run = result.run.model_copy(update={"spec_digest": digest_bytes(PAGE_SPEC)})
    return result.model_copy(update={"run": run})


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
    digest = digest_bytes(results.encode())
    return render_html(AuditResult.model_validate_json(results), digest).encode()


@cache
def _pdf(results: str) -> bytes:
    return render_pdf(
        AuditResult.model_validate_json(results), results.encode(), html=_html(results).decode()
    )


def packet_files(result: AuditResult, pdf: bool | None = None) -> dict[str, bytes]:
    """The files of a packet; the PDF, which takes seconds, by default for the one usual result only."""
    source = Source(result)
    results = source.data.decode()
    with_pdf = result == packet_result() if pdf is None else pdf
    formats = ("html", "pdf") if with_pdf else ("html",)
    files = {
        "spec.yaml": PAGE_SPEC if result.run.spec_digest == digest_bytes(PAGE_SPEC) else SPEC,
        "results.json": source.data,
        "report.html": _html(results),
        **accompanying_files(result, RESOLVED, formats),
    }
    return files | ({"report.pdf": _pdf(results)} if with_pdf else {})


def write_packet(
    destination: Path,
    signer: Signer | None,
    *,
    result: AuditResult | None = None,
    replace: bool = False,
) -> Path:
    result = result or packet_result()
    if result != packet_result():
        result = without_pdf(result)
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
