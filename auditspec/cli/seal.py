"""`seal`: sign what `run --unsigned` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.passphrase import asking
from auditspec.cli.sealing import signing_options

if TYPE_CHECKING:
    from auditspec.sign.credentials import Credentials
    from auditspec.spec.models import Spec


@click.command()
@click.argument("packet", type=click.Path(path_type=Path))
@signing_options
def seal(
    packet: Path, key: str, certificate: str | None, url: str | None, passphrase_fd: int | None
) -> None:
    """Sign a packet that `run --unsigned` wrote, in its place, on this machine or another.

    Its files are held against one another, its verdicts drawn again from its levels and checks, and its reports
    drawn again with the signer in them. Neither evidence nor audited code is needed.

    Exits with 2 if it is signed already or the key cannot be used, and 3 if its files do not belong together.
    """
    from dataclasses import replace

    from auditspec.report.exports import chosen
    from auditspec.sign.credentials import Credentials, signer_of
    from auditspec.sign.unsigned import seal as sign_unsigned

    def credentials(spec: Spec) -> Credentials:
        signer = signer_of(key, Path(), asking(passphrase_fd))
        loaded = Credentials.load(signer, Path(), certificate, url)
        pades = any(export.pades for export in chosen(spec.report.formats))
        return loaded if pades else replace(loaded, level=None)

    result = sign_unsigned(packet, credentials)
    click.echo(f"signed by {result.signer.keyid if result.signer else key}")
