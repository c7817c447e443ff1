"""`log`: an append-only log of packets."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import click

from auditspec.cli.passphrase import asking, passphrase_option
from auditspec.errors import UsageError


@click.group()
def log() -> None:
    """Keep an append-only log of packets."""


@log.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="LOG")
@click.argument("packet", type=click.Path(path_type=Path))
@click.option("--key", required=True, help="The log's private key (PEM), or one on a token.")
@click.option("--origin", metavar="NAME", help="The log's name, when it is begun.")
@passphrase_option
def append(
    folder: Path, packet: Path, key: str, origin: str | None, passphrase_fd: int | None
) -> None:
    """Enter a signed packet into a log, and write its proof into the packet.

    The log is begun if its folder does not exist or is empty. Several may append at once.
    """
    from auditspec.artifacts.files import read_regular, write_into
    from auditspec.sign import log as logs
    from auditspec.sign.credentials import signer_of
    from auditspec.sign.dsse import Envelope
    from auditspec.sign.packet import ENVELOPE, INCLUSION
    from auditspec.sign.seen_checkpoints import SeenCheckpoints
    from auditspec.user_folders import state_folder

    envelope = Envelope.decode(read_regular(packet / ENVELOPE))
    signer = signer_of(key, Path(), asking(passphrase_fd))
    memory = SeenCheckpoints(state_folder() / "kept")
    inclusion = logs.append(folder, envelope, signer, origin, memory)
    write_into(packet, INCLUSION, inclusion.encode())
    click.echo(f"entry {inclusion.index + 1}")


@log.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="LOG")
@click.option(
    "--log-key",
    type=click.Path(path_type=Path),
    required=True,
    help="The log's public key (PEM).",
)
@click.option(
    "--checkpoint",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A checkpoint that others were shown; may be given several times.",
)
@click.option("--cosign", metavar="KEY", help="Cosign the checkpoint with this Ed25519 key.")
@click.option("--name", help="The witness's name beside its cosignature.")
@passphrase_option
def monitor(
    folder: Path,
    log_key: Path,
    others: tuple[Path, ...],
    cosign: str | None,
    name: str | None,
    passphrase_fd: int | None,
) -> None:
    """Check that a log extends every checkpoint that this monitor saw, and list what is new.

    With --cosign and --name it is a witness, who signs that below the log's checkpoint. Exits with 6 if the log
    was cut, rolled back, rewritten, or forked.
    """
    from auditspec.sign import keys
    from auditspec.sign.checkpoint import RefusedLogError, require_name
    from auditspec.sign.credentials import signer_of
    from auditspec.sign.log import write_cosigned
    from auditspec.sign.seen_checkpoints import SeenCheckpoints
    from auditspec.user_folders import state_folder
    from auditspec.verification.monitor import watch

    if (cosign is None) != (name is None):
        raise UsageError("a witness has a key and a name", "give both: --cosign KEY --name NAME")
    signer = signer_of(cosign, Path(), asking(passphrase_fd)) if cosign else None
    memory = SeenCheckpoints(state_folder() / "logs")
    watched = watch(folder, keys.load_public(log_key), memory, others)
    checkpoint = watched.log.checkpoint
    if signer is not None and name is not None:
        now = dt.datetime.now(dt.UTC)
        try:
            write_cosigned(folder, checkpoint.cosigned_by(signer, require_name(name), now))
        except (RefusedLogError, OSError) as error:
            raise UsageError(f"{folder}: {error}", "cosign again") from None
    for entry in watched.new:
        click.echo(entry)
    click.echo(f"{checkpoint.origin}: {checkpoint.size} entries, {len(watched.new)} new", err=True)
