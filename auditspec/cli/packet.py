"""`verify`, `sign`, and `keys`: the packet's signatures, checked and made."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.passphrase import asking, new_passphrase, passphrase_option
from auditspec.cli.place import PLACE
from auditspec.cli.sealing import signing_options
from auditspec.errors import Exit, UsageError
from auditspec.sign import keys as keyring
from auditspec.sign.keys import Algorithm
from auditspec.withheld import is_withheld

if TYPE_CHECKING:
    from auditspec.results import AuditResult
    from auditspec.verification.verifier import Verification

MARKS = {"pass": "✓", "weaker": "~", "fail": "✗", "skipped": "○", "not-run": "–"}
ALGORITHMS: dict[str, Algorithm] = {
    "ecdsa-p256": "ecdsa-p256-sha256",
    "ed25519": "ed25519",
    "rsa-pss": "rsa-pss-sha256",
}


@click.command()
@click.argument("packet", type=PLACE)
@click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path),
    help="Trust file: whose signatures count. Without it the signer stays unknown.",
)
@click.option(
    "--log",
    "log_folder",
    type=click.Path(path_type=Path),
    help="Folder of the log that the trust file names.",
)
@click.option("--at", metavar="TIME", help="Verify as of this moment (ISO 8601); by default now.")
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    help="The spec that the packet must be about.",
)
@click.option(
    "--artifact",
    "artifacts",
    metavar="NAME=PATH",
    multiple=True,
    help="An artifact that the packet must be about; may be given several times.",
)
@click.option(
    "--disclosures",
    "disclosed",
    type=click.Path(path_type=Path),
    help="Withheld values that their holder wants to prove.",
)
@click.option(
    "--system-version", metavar="TEXT", help="The system's version that it must be about."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Times the processor time and memory that the packet's contents may take.",
)
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def verify(
    packet: Path | str,
    trust_file: Path | None,
    log_folder: Path | None,
    at: str | None,
    spec: Path | None,
    artifacts: tuple[str, ...],
    disclosed: Path | None,
    system_version: str | None,
    limit: int,
    format_: str,
) -> None:
    """Verify a packet, offline; one in a store, by its URL, is fetched first.

    Exits with 0 if every file is what trusted keys signed, 6 if anything does not hold, 7 if the
    packet is intact, but its signer is unknown, and 8 if reports could not be made again here.
    """
    from auditspec.api import verify as verify_packet

    verification = verify_packet(
        packet,
        trust=trust_file,
        log=log_folder,
        at=None if at is None else _moment(at),
        spec=spec,
        artifacts=_named(artifacts),
        disclosures=disclosed,
        system_version=system_version,
        limit=limit,
    )
    click.echo(_as_json(verification) if format_ == "json" else _as_text(verification))
    if verification.error is not None:
        raise verification.error


@click.command()
@click.argument("packet", type=click.Path(path_type=Path))
@signing_options
def sign(
    packet: Path, key: str, certificate: str | None, url: str | None, passphrase_fd: int | None
) -> None:
    """Add a signature to a packet whose files are what its envelope lists.

    Nothing else changes. In which role the signature counts is for the verifier's trust file.
    """
    from auditspec.artifacts.files import write_into
    from auditspec.artifacts.locks import alone_in
    from auditspec.errors import NotRebuiltError, UnknownSignerError
    from auditspec.sign.credentials import Credentials, signer_of
    from auditspec.sign.dsse import Envelope
    from auditspec.sign.packet import ENVELOPE
    from auditspec.verification.verifier import verify

    signer = signer_of(key, Path(), asking(passphrase_fd))
    credentials = Credentials.load(signer, Path(), certificate, url)
    with alone_in(packet.absolute().parent):
        with contextlib.suppress(
            UnknownSignerError, NotRebuiltError
        ):  # intact is what matters here
            verify(packet, None)
        envelope = Envelope.decode((packet / ENVELOPE).read_bytes())
        if any(s.keyid == credentials.signer.keyid for s in envelope.signatures):
            raise UsageError(f"{packet}: signed by this key already")
        signed = envelope.signed_by(credentials.signer, *credentials.extras)
        write_into(packet, ENVELOPE, signed.encode())
    click.echo(f"signed by {credentials.signer.keyid}; {len(signed.signatures)} signatures")


@click.group()
def keys() -> None:
    """Make signing keys, and show public ones."""


@keys.command("new")
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--algorithm", type=click.Choice(list(ALGORITHMS)), default="ecdsa-p256", show_default=True
)
@click.option("--role", default="auditor", show_default=True, help="Role in the trust file.")
@click.option(
    "--trust-file",
    type=click.Path(path_type=Path),
    help="Trust file that lists the key.  [default: trust.yaml beside the key]",
)
@click.option(
    "--encrypt", is_flag=True, help="Encrypt the private key; --passphrase-fd does so too."
)
@passphrase_option
def new(
    name: Path,
    algorithm: str,
    role: str,
    trust_file: Path | None,
    encrypt: bool,
    passphrase_fd: int | None,
) -> None:
    """Write NAME.key (private), NAME.pub, NAME.pem (a certificate of its own), and a trust file.

    No key that exists is overwritten. A trust file that exists gets the key added; whose signatures
    it requires stays as it is.
    """
    from auditspec.artifacts.files import write_or_refuse
    from auditspec.artifacts.locks import alone_in
    from auditspec.sign.certificates import self_signed
    from auditspec.verification.trust import add_key, write_trust

    private, public, certificate = (
        name.with_name(name.name + suffix) for suffix in (".key", ".pub", ".pem")
    )
    trust_file = trust_file or name.with_name("trust.yaml")
    for path in (private, public, certificate):
        if path.exists():
            raise UsageError(
                f"{path}: exists already, and is never overwritten", "choose another name"
            )
    encrypt = encrypt or passphrase_fd is not None
    passphrase = new_passphrase(passphrase_fd) if encrypt else None
    key = keyring.generate(ALGORITHMS[algorithm])
    # First the trust file: it alone can be refused for its contents (the role, or what it holds).
    listed = os.path.relpath(public, trust_file.parent)
    with alone_in(trust_file.absolute().parent):
        trusted = None
        if trust_file.exists():
            trusted = add_key(trust_file, name.name, role, listed)
        else:
            write_trust(trust_file, name.name, role, listed)
        keyring.write_private(private, key, passphrase)
        keyring.write_public(public, key.public_key())
        keyring.write_new(certificate, self_signed(key, name.name, dt.datetime.now(dt.UTC)))
        if trusted is not None:
            write_or_refuse(trust_file, trusted)
    click.echo(
        f"private key  {private} (keep it secret{'' if encrypt else '; it is not encrypted'})"
    )
    click.echo(f"public key   {public}")
    click.echo(f"certificate  {certificate}")
    click.echo(f"trust file   {trust_file}")
    click.echo(f"keyid        {keyring.keyid(key.public_key())}")


@keys.command("public")
@click.argument("key")
@passphrase_option
def public(key: str, passphrase_fd: int | None) -> None:
    """Print the public key (SPKI PEM) of KEY: a private key file, or the URI of a key on a token or in a service."""
    from auditspec.sign.credentials import signer_of

    signer = signer_of(key, Path(), asking(passphrase_fd))
    click.echo(keyring.public_pem(signer.public_key), nl=False)


def _moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text!r}: not a moment", "write 2027-01-31 or 2027-01-31T12:00Z"
        ) from None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


def _named(artifacts: tuple[str, ...]) -> dict[str, str]:
    named = {}
    for item in artifacts:
        name, equals, path = item.partition("=")
        if not equals:
            raise UsageError(f"--artifact {item!r}: not NAME=PATH", "final=model.safetensors")
        named[name] = path
    return named


def _as_text(verification: Verification) -> str:
    lines = [
        f"{step.number:2} {MARKS[step.outcome]} {step.name}"
        + (f": {step.detail}" if step.detail else "")
        for step in verification.steps
    ]
    return "\n".join([*lines, verification.summary])


def _verdicts(result: AuditResult) -> dict[str, str]:
    """Each verdict by its behaviour, `withheld` where it is; those on behaviours that are withheld are left out."""
    return {
        v.behavior: "withheld" if is_withheld(v.verdict) else v.verdict
        for v in result.verdicts
        if not is_withheld(v) and not is_withheld(v.behavior)
    }


def _as_json(verification: Verification) -> str:
    error, result = verification.error, verification.result
    return json.dumps(
        {
            "summary": verification.summary,
            "exit_code": int(error.exit_code if error else Exit.PASS),
            "audit": result.audit.id if result else None,
            "verdicts": _verdicts(result) if result else {},
            "steps": [
                {"number": s.number, "name": s.name, "outcome": s.outcome, "detail": s.detail}
                for s in verification.steps
            ],
            "signers": [
                {"name": s.name, "role": s.role, "keyid": s.keyid, "algorithm": s.algorithm}
                for s in verification.signers
            ],
            "unknown_signers": list(verification.unknown),
            "reports": _level(verification),
            "withheld": list(verification.withheld),
        },
        indent=2,
        ensure_ascii=False,
    )


def _level(verification: Verification) -> str | None:
    """How the reports were compared; None where they were not, or are not what they must be."""
    levels = {"pass": "made again", "weaker": "not rebuilt"}
    return next((levels.get(s.outcome) for s in verification.steps if s.name == "rebuild"), None)
