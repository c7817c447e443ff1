"""Passphrases and PINs for commands that sign: from a descriptor, or asked for on the terminal."""

from __future__ import annotations

import functools
import getpass
import os

import click

from auditspec.errors import UsageError
from auditspec.sign.confidential import Ask, from_descriptor, nobody

passphrase_option = click.option(
    "--passphrase-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Open descriptor whose first line is the key's passphrase, or the token's PIN; by default it is asked "
    "for on the terminal, unseen.",
)


def asking(descriptor: int | None) -> Ask:
    """Who gives a passphrase: the descriptor, the terminal, or nobody. Each is asked once."""
    return functools.cache(
        _on_terminal if descriptor is None else lambda what: from_descriptor(descriptor)
    )


def new_passphrase(descriptor: int | None) -> bytes:
    """The passphrase of a new key; on the terminal it is asked for twice.

    Raises:
        UsageError: if there is nobody to ask, it is empty, or the two differ.
    """
    if descriptor is not None:
        return from_descriptor(descriptor)
    first = _on_terminal("the new key")
    if first != _on_terminal("the new key, once more: it"):
        raise UsageError("the two passphrases differ", "try again")
    return first


def _on_terminal(what: str) -> bytes:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        nobody(what)
    passphrase = getpass.getpass(f"{what} needs a passphrase or PIN: ").encode()
    if not passphrase:
        raise UsageError(f"{what}: the passphrase is empty", "try again")
    return passphrase
