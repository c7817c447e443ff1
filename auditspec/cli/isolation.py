"""`--isolation`: how the audited code is kept apart."""

from __future__ import annotations

import click

isolation_option = click.option(
    "--isolation",
    type=click.Choice(["required", "best", "none"]),
    default="best",
    show_default=True,
    envvar="AUDITSPEC_ISOLATION",
    help="The audited code's process: kept from files, network, and other processes, or refused; as far as this "
    "machine can; or none, in the audit's own: for code that you trust as yourself.",
)
