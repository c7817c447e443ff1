"""`verify` and `keys`: the packet's signature, checked and made possible."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from auditspec.errors import Exit, UsageError
from auditspec.sign import keys as keyring
from auditspec.sign.keys import Algorithm
from auditspec.sign.trust import Trust, write_trust
from auditspec.sign.verifier import Verification, examine

MARKS = {"pass": "✓", "fail": "✗", "not-run": "–"}
ALGORITHMS: dict[str, Algorithm] = {"ecdsa-p256": "ecdsa-p256-sha256", "ed25519": "ed25519"}


@click.command()
@click.argument("packet", type=click.Path(path_type=Path))
@click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path),
    help="Trust file: whose signatures count. Without it the signer stays unknown.",
)
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def verify(packet: Path, trust_file: Path | None, format_: str) -> None:
    """Verify a packet, offline.

    Exits with 0 if every file is what trusted keys signed, 6 if anything does not hold, and 7 if the
    packet is intact, but its signer is unknown.
    """
    verification = examine(packet, None if trust_file is None else Trust.read(trust_file))
    click.echo(_as_json(verification) if format_ == "json" else _as_text(verification))
    if verification.error is not None:
        raise verification.error


@click.group()
def keys() -> None:
    """Make signing keys."""


@keys.command("new")
@click.argument("name", type=click.Path(path_type=Path))
@click.option(
    "--algorithm", type=click.Choice(list(ALGORITHMS)), default="ecdsa-p256", show_default=True
)
@click.option("--role", default="auditor", show_default=True, help="Role in the trust file.")
@click.option(
    "--trust-file",
    type=click.Path(path_type=Path),
    help="Where to write the trust file.  [default: trust.yaml beside the key]",
)
def new(name: Path, algorithm: str, role: str, trust_file: Path | None) -> None:
    """Write NAME.key (private), NAME.pub, and a trust file that names the key.

    Nothing that exists is overwritten.
    """
    private, public = (name.with_name(name.name + suffix) for suffix in (".key", ".pub"))
    trust_file = trust_file or name.with_name("trust.yaml")
    for path in (private, public, trust_file):
        if path.exists():
            raise UsageError(
                f"{path}: exists already, and is never overwritten",
                "choose another name"
                if path is not trust_file
                else "add the new key to it by hand, or name another: --trust-file",
            )
    key = keyring.generate(ALGORITHMS[algorithm])
    # First the trust file: it alone can be refused for its contents (the role).
    write_trust(trust_file, name.name, role, os.path.relpath(public, trust_file.parent))
    keyring.write_private(private, key)
    keyring.write_public(public, key.public_key())
    click.echo(f"private key  {private} (keep it secret; it is not encrypted)")
    click.echo(f"public key   {public}")
    click.echo(f"trust file   {trust_file}")
    click.echo(f"keyid        {keyring.keyid(key.public_key())}")


def _as_text(verification: Verification) -> str:
    lines = [
        f"{step.number:2} {MARKS[step.outcome]} {step.name}"
        + (f": {step.detail}" if step.detail else "")
        for step in verification.steps
    ]
    return "\n".join([*lines, verification.summary])


def _as_json(verification: Verification) -> str:
    error, result = verification.error, verification.result
    return json.dumps(
        {
            "summary": verification.summary,
            "exit_code": int(error.exit_code if error else Exit.PASS),
            "audit": result.audit.id if result else None,
            "verdicts": {v.behavior: v.verdict for v in result.verdicts} if result else {},
            "steps": [
                {"number": s.number, "name": s.name, "outcome": s.outcome, "detail": s.detail}
                for s in verification.steps
            ],
            "signers": [
                {"name": s.name, "role": s.role, "keyid": s.keyid, "algorithm": s.algorithm}
                for s in verification.signers
            ],
            "unknown_signers": list(verification.unknown),
        },
        indent=2,
        ensure_ascii=False,
    )
