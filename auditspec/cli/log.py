"""`log`: an append-only log of packets."""

from __future__ import annotations

from pathlib import Path

import click

from auditspec.cli.passphrase import asking, passphrase_option


@click.group()
def log() -> None:
    """Keep an append-only log of packets."""


@log.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="LOG")
@click.argument("packet", type=click.Path(path_type=Path))
@click.option("--key", required=True, help="The log's private key (PEM), or one on a token.")
@passphrase_option
def append(folder: Path, packet: Path, key: str, passphrase_fd: int | None) -> None:
    """Enter a signed packet into a log, and write its proof into the packet.

    The log is made if its folder does not exist.
    """
    from auditspec.artifacts.files import read_regular, write_or_refuse
    from auditspec.sign import log as logs
    from auditspec.sign.credentials import signer_of
    from auditspec.sign.dsse import Envelope
    from auditspec.sign.packet import ENVELOPE, INCLUSION

    envelope = Envelope.decode(read_regular(packet / ENVELOPE))
    inclusion = logs.append(folder, envelope, signer_of(key, Path(), asking(passphrase_fd)))
    write_or_refuse(packet / INCLUSION, inclusion.encode())
    click.echo(f"entry {inclusion.index + 1}")
