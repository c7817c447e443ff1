"""The options of commands that sign: an auditor's, and a trainer's, who names a log too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from auditspec.cli.passphrase import asking, passphrase_option

if TYPE_CHECKING:
    from auditspec.sign.sealing import Sealer

Command = TypeVar("Command", bound=Callable[..., Any])


def signing_options(command: Command) -> Command:
    """Give a command the options of whoever signs a packet."""
    for option in (
        passphrase_option,
        click.option("--timestamp", "url", metavar="URL", help="Timestamp authority to ask."),
        click.option(
            "--certificate", help="PEM file with the key's certificate, then those above it."
        ),
        click.option(
            "--key", required=True, help="Private key (PEM), or a key on a token (pkcs11:…)."
        ),
    ):
        command = option(command)
    return command


def sealing_options(command: Command) -> Command:
    """Give a command the options that `sealer_of` takes."""
    for option in (
        passphrase_option,
        click.option("--log-key", help="The log's private key (PEM), or one on a token."),
        click.option(
            "--log", "log_folder", type=click.Path(path_type=Path), help="Enter it into this log."
        ),
        click.option(
            "--timestamp",
            "url",
            metavar="URL",
            help="Timestamp authority: the one address contacted.",
        ),
        click.option(
            "--key", required=True, help="The trainer's private key (PEM), or one on a token."
        ),
    ):
        command = option(command)
    return command


def sealer_of(
    key: str,
    url: str | None,
    log_folder: Path | None,
    log_key: str | None,
    passphrase_fd: int | None,
) -> Sealer:
    """Whoever signs, by a command's options.

    Raises:
        UsageError: if a key cannot be used, or a log is named without its key.
    """
    from auditspec.api import sealer

    return sealer(
        key, timestamp=url, log=log_folder, log_key=log_key, passphrase=asking(passphrase_fd)
    )
