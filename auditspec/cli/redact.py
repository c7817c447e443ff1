"""`redact`: a packet again, with parts withheld behind commitments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.passphrase import asking, passphrase_option
from auditspec.errors import UsageError

if TYPE_CHECKING:
    from auditspec.results import AuditResult
    from auditspec.sign.redaction import Disclosure


@click.command()
@click.argument("packet", type=click.Path(path_type=Path))
@click.argument("what", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why it is withheld; stands in the report.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new packet; it must not exist yet, or be empty.",
)
@click.option("--key", required=True, help="Private key (PEM), or a key on a token (pkcs11:…).")
@click.option("--certificate", help="PEM file with the key's certificate, then those above it.")
@click.option("--timestamp", "url", metavar="URL", help="Timestamp authority to ask.")
@passphrase_option
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def redact(
    packet: Path,
    what: tuple[str, ...],
    reason: str,
    out: Path,
    key: str,
    certificate: str | None,
    url: str | None,
    passphrase_fd: int | None,
    quiet: bool,
) -> None:
    """Write a packet again without some values, each named by its place in results.json.

    The spec, which may repeat them, is withheld as a whole. What proves the values is written beside
    the new packet, to OUT.withheld.json: keep it, and hand out what you want to prove.
    """
    from auditspec.cli.progress import progress_on_stderr
    from auditspec.report.exports import Source, exports
    from auditspec.sign import keys
    from auditspec.sign.credentials import Credentials, signer_of
    from auditspec.sign.packet import PacketWriter
    from auditspec.sign.redaction import Disclosures

    signer = signer_of(key, Path(), asking(passphrase_fd))
    credentials = Credentials.load(signer, Path(), certificate, url)
    files, result, disclosures = _without(packet, what, reason)
    wanted = [export for export in exports().values() if export.file in files]
    signs_a_pdf = any(export.pades for export in wanted)
    info = credentials.info if signs_a_pdf else credentials.info.model_copy(update={"pdf": None})
    result = result.model_copy(update={"signer": info})
    beside = out.with_name(f"{out.name}.withheld.json")
    keys.write_new(beside, Disclosures(disclosures=list(disclosures)).encode(), mode=0o600)
    try:
        with progress_on_stderr(quiet) as progress, PacketWriter(out) as writer:
            for name, data in files.items():
                if name not in {export.file for export in wanted}:
                    writer.write(name, data)
            with progress.phase("drawing the report"):
                writer.write_exports(Source(result), wanted, credentials)
            writer.seal(credentials.signer, result, *credentials.extras)
    except BaseException:
        beside.unlink()
        raise
    click.echo(out)
    click.echo(beside)


def _without(
    packet: Path, what: Sequence[str], reason: str
) -> tuple[dict[str, bytes], AuditResult, tuple[Disclosure, ...]]:
    """The files of a packet that holds up and the result that it is about, both without what is withheld.

    Returns:
        The files by name, of which those that are made from the result are still the old ones; the result,
        not yet signed; what proves the values.

    Raises:
        SignatureError: if the packet does not hold up, whoever signed it.
        UsageError: if something cannot be withheld.
    """
    from auditspec.artifacts.digest import digest_bytes
    from auditspec.artifacts.files import read_regular
    from auditspec.errors import UnknownSignerError
    from auditspec.sign import packet as names
    from auditspec.sign import redaction
    from auditspec.sign.contents import evidence_file
    from auditspec.verification.verifier import verify_all

    verification = verify_all(packet, None)
    if verification.result is None or not isinstance(verification.error, UnknownSignerError):
        raise verification.error or UsageError(f"{packet}: cannot be read")
    files = {p.name: read_regular(p) for p in packet.iterdir() if p.name not in names.SIDECARS}
    result, disclosures = redaction.withhold(verification.result, what)
    for name in (names.SPEC, names.RESOLVED, names.LOCK):
        if name in files:
            try:
                item = redaction.commit(name, files[name].decode())
            except UnicodeDecodeError:
                raise UsageError(f"{packet / name}: not UTF-8, so it cannot be withheld") from None
            files[name] = redaction.blank_file(item.commitment)
            disclosures = (*disclosures, item)
    result = redaction.record(result, disclosures, reason)
    run = result.run.model_copy(update={"spec_digest": digest_bytes(files[names.SPEC])})
    files[names.EVIDENCE] = evidence_file(result)
    return files, result.model_copy(update={"run": run}), disclosures
