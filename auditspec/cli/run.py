"""`auditspec run`: audit, and write the packet."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.isolation import isolation_option
from auditspec.cli.passphrase import asking, passphrase_option
from auditspec.cli.place import PLACE
from auditspec.errors import Exit
from auditspec.urls import as_path

if TYPE_CHECKING:
    from auditspec.sealed.isolation import Wanted


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=PLACE,
    help="Folder of the packet, or a URL in a store; by default AUDIT-ID.packet in this folder. It must not exist yet, "
    "or be empty.",
)
@click.option("--force", is_flag=True, help="Replace the packet that stands in the folder.")
@passphrase_option
@click.option("--unsigned", is_flag=True, help="Do not sign, whatever the spec says.")
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AUDITSPEC_CACHE",
    help="Folder of finished estimates; by default auditspec in the user's cache folder.",
)
@isolation_option
@click.option("--no-code", is_flag=True, help="Execute no code of the spec: list it, and stop.")
@click.option("--no-cache", is_flag=True, help="Compute every estimate anew, and keep none.")
@click.option(
    "--fail-on",
    type=click.Choice(["low", "medium", "high", "critical", "never"]),
    help="Severity from which on a finding fails the gate, in place of the spec's policy.fail_on.",
)
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def run(
    spec: Path,
    out: Path | str | None,
    force: bool,
    passphrase_fd: int | None,
    unsigned: bool,
    cache_folder: Path | None,
    isolation: Wanted,
    no_code: bool,
    no_cache: bool,
    fail_on: str | None,
    format_: str,
    quiet: bool,
) -> int:
    """Audit: check the evidence, estimate, check the estimate, judge, and write a signed packet.

    Runs the code that the spec names, after the spec was held against everything that it names, the
    code's digest was checked, and its files were listed.

    Exit codes: 0 pass; 1 policy gate failed; 2 usage or spec error; 3 evidence missing or
    mismatched; 4 estimation failed; 5 inconclusive where the policy forbids it.
    """
    from auditspec.sealed.zygote import begin_again

    if isolation != "none" and not no_code:
        begin_again()
    from auditspec import api, team
    from auditspec.cli.output import print_result
    from auditspec.cli.progress import progress_on_stderr
    from auditspec.user_folders import cache_folder as default_cache

    loaded = api.load_spec(spec)
    if fail_on is not None:
        loaded = loaded.failing_on(fail_on)
    out = out or Path(f"{loaded.spec.audit.id}.packet")
    if team.rank():
        with redirect_stdout(sys.stderr):
            api.assist(loaded, isolation=isolation)
        return Exit.PASS
    with progress_on_stderr(quiet) as progress, redirect_stdout(sys.stderr):
        result = api.audit(  # whatever the audited code prints is no data of ours
            loaded,
            out=out,
            force=force,
            unsigned=unsigned,
            cache=None if no_cache else cache_folder or default_cache(),
            allow_code=not no_code,
            announce=lambda line: click.echo(line, err=True),
            progress=progress,
            passphrase=asking(passphrase_fd),
            isolation=isolation,
            command=shlex.join(["auditspec", *sys.argv[1:]]),
        )
    print_result(result, as_path(out), format_)
    if result.gate.exit_code and team.restarts_what_fails():
        click.echo(
            f"the gate's exit status is {result.gate.exit_code}; the launcher is told 0, since it would take that for a "
            "process that died",
            err=True,
        )
        return Exit.PASS
    return Exit(result.gate.exit_code)
