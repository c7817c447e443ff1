"""A packet that `run --unsigned` wrote, held against itself before somebody signs it, perhaps on another machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.files import read_regular
from auditspec.conclusions import concluded_again
from auditspec.errors import AuditspecError, EvidenceError, UsageError
from auditspec.report.exports import Source, chosen
from auditspec.results import AuditResult
from auditspec.sign.contents import accompanying_files
from auditspec.sign.credentials import Credentials
from auditspec.sign.packet import (
    ENVELOPE,
    ENVIRONMENT,
    EVIDENCE,
    LOCK,
    RESOLVED,
    RESULTS,
    SPEC,
    PacketWriter,
    decode_results,
)
from auditspec.spec.measures import AS_DECLARED
from auditspec.spec.models import Spec

REMEDY = "get the packet again from where the audit ran"


def seal(packet: Path, credentials: Callable[[Spec], Credentials]) -> AuditResult:
    """Sign an unsigned packet in its place: its reports are drawn again, with the signer in them.

    Nothing of the audit is computed; verdicts, findings, and gate must follow from the published levels and checks.

    Args:
        packet: the packet's folder.
        credentials: makes what is signed with, given the spec.

    Returns:
        The results, with their signer.

    Raises:
        UsageError: if it is signed already, or is no packet.
        EvidenceError: if its files do not belong together.
    """
    result, spec, files = _coherent(packet)
    signing = credentials(spec)
    signed = result.model_copy(update={"signer": signing.info})
    wanted = chosen(spec.report.formats)
    with PacketWriter(packet, True) as writer:
        for name, data in files.items():
            writer.write(name, data)
        writer.write_exports(Source(signed), wanted, signing)
        writer.seal(signing.signer, signed, *signing.extras)
    return signed


def _coherent(packet: Path) -> tuple[AuditResult, Spec, dict[str, bytes]]:
    """The results, the spec, and the files that are no reports."""
    if (packet / ENVELOPE).exists():
        raise UsageError(f"{packet}: signed already", "auditspec sign adds a signature")
    if not (packet / RESULTS).exists():
        raise UsageError(
            f"{packet}: no packet", "name a folder that auditspec run --unsigned wrote"
        )
    names = (SPEC, RESOLVED, EVIDENCE, ENVIRONMENT, LOCK)
    files = {name: read_regular(packet / name) for name in names if (packet / name).exists()}
    result = decode_results(read_regular(packet / RESULTS), RESULTS)
    if RESOLVED not in files:
        raise EvidenceError(f"{packet}: {RESOLVED} is missing", REMEDY)
    spec = strict_json.load(Spec, files[RESOLVED], RESOLVED, AS_DECLARED)
    expected = accompanying_files(result, spec, spec.report.formats or ())
    digests = {name: digest_bytes(data) for name, data in expected.items()}
    digests[SPEC] = result.run.spec_digest
    if result.run.environment:
        digests[ENVIRONMENT] = result.run.environment
    for name in sorted(files.keys() | digests.keys()):
        if name not in files or digest_bytes(files[name]) != digests.get(name):
            raise EvidenceError(f"{packet}: {name} is not what the results say", REMEDY)
    try:
        again = concluded_again(result, spec)
    except (AuditspecError, ValueError, KeyError) as error:
        raise EvidenceError(
            f"{packet}: its verdicts cannot be drawn again: {error}", REMEDY
        ) from None
    for part in ("verdicts", "findings", "gate"):
        if getattr(result, part) != getattr(again, part):
            raise EvidenceError(
                f"{packet}: its {part} are not those that levels and checks lead to", REMEDY
            )
    return result, spec, files
