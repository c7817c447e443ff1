"""`redact`: a packet again, with parts withheld, under the signatures that it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.errors import UsageError

if TYPE_CHECKING:
    from auditspec.sign.redaction import Redacted


@click.command()
@click.argument("packet", type=click.Path(path_type=Path))
@click.argument("what", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why it is withheld; stands in the report, unsigned.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new packet; it must not exist yet, or be empty.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def redact(packet: Path, what: tuple[str, ...], reason: str, out: Path, quiet: bool) -> None:
    """Write a packet again without some values, each named by its place in results.json.

    It needs no key: the signatures of the packet cover what is left, and what stands in place of the rest. Spec files that may
    repeat a value are left out. What proves the values is written beside the new packet, to
    OUT.withheld.json: keep it, and hand out what you want to prove.
    """
    from auditspec.artifacts.files import read_regular
    from auditspec.cli.progress import progress_on_stderr
    from auditspec.report.exports import Source, exports
    from auditspec.sign import keys, redaction
    from auditspec.sign.dsse import Envelope
    from auditspec.sign.packet import (
        ENVELOPE,
        EVIDENCE,
        INCLUSION,
        RESULTS,
        PacketWriter,
        read_results,
    )
    from auditspec.sign.redaction import Disclosures

    redacted = _without(packet, what, reason)
    inclusion = packet / INCLUSION
    beside = out.with_name(f"{out.name}.withheld.json")
    keys.write_new(beside, Disclosures(disclosures=list(redacted.openings)).encode(), mode=0o600)
    try:
        with progress_on_stderr(quiet) as progress, PacketWriter(out) as writer:
            for name, data in redacted.files.items():
                writer.write(name, data)
            if EVIDENCE not in redacted.files:
                writer.write(EVIDENCE, redaction.encode_evidence(redacted.document))
            result = read_results(redacted.document, RESULTS)
            wanted = [e for e in exports().values() if (packet / e.file).exists()]
            with progress.phase("drawing the report"):
                source = Source(result, redaction.encode_results(redacted.document))
                writer.write_exports(source, wanted, None)
            writer.close(
                Envelope.decode(read_regular(packet / ENVELOPE)),
                redacted.disclosure,
                read_regular(inclusion) if inclusion.exists() else None,
            )
    except BaseException:
        beside.unlink()
        raise
    click.echo(out)
    click.echo(beside)


def _without(packet: Path, what: tuple[str, ...], reason: str) -> Redacted:
    """A packet that holds up, without what is withheld.

    Raises:
        SignatureError: if the packet does not hold up, whoever signed it.
        UsageError: if something cannot be withheld.
    """
    from auditspec.artifacts.files import read_regular
    from auditspec.errors import UnknownSignerError
    from auditspec.sign.disclosure import FILE, Disclosure
    from auditspec.sign.redaction import withhold
    from auditspec.verification.verifier import verify_all

    verification = verify_all(packet, None)
    if not isinstance(verification.error, UnknownSignerError):
        raise verification.error or UsageError(f"{packet}: cannot be read")
    files = {path.name: read_regular(path) for path in packet.iterdir()}
    return withhold(files, Disclosure.decode(files[FILE]), what, reason)
