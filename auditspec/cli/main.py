"""The command group. Commands load when they are called, so that `--help` costs almost nothing."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module

import click

from auditspec.collector import own_process, unsearched
from auditspec.errors import AuditspecError, Exit

BUG = 70  # Python's own 1 would read as a failed policy gate

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("auditspec.cli.spec:init", "Write a commented spec to start from."),
    "validate": (
        "auditspec.cli.spec:validate",
        "Check a spec and its evidence without running any code.",
    ),
    "schema": ("auditspec.cli.spec:schema", "Print a published JSON Schema."),
    "digest": ("auditspec.cli.spec:digest", "Print or pin the digests of artifacts."),
    "plan": ("auditspec.cli.plan:plan", "Forecast what each estimator costs, and what it needs."),
    "limit": ("auditspec.cli.limit:limit", "Propose a limit for each behaviour."),
    "run": ("auditspec.cli.run:run", "Audit: evidence, estimate, checks, verdict, signed packet."),
    "counterfactuals": (
        "auditspec.cli.counterfactuals:counterfactuals",
        "Write the model without each stage, for other tools to score.",
    ),
    "scores": ("auditspec.cli.scores:scores", "Bring scores of other tools into a table."),
    "render": ("auditspec.cli.report:render", "Make the reports again from a results.json."),
    "verify": ("auditspec.cli.packet:verify", "Verify a packet, offline."),
    "sign": ("auditspec.cli.packet:sign", "Add a signature to a packet."),
    "seal": ("auditspec.cli.seal:seal", "Sign what run --unsigned wrote."),
    "redact": ("auditspec.cli.redact:redact", "Write a packet again, with parts withheld."),
    "log": ("auditspec.cli.log:log", "Keep an append-only log of packets."),
    "keys": ("auditspec.cli.packet:keys", "Make signing keys, and show public ones."),
    "record": ("auditspec.cli.record:record", "Look into a training record, check it, or sign it."),
}


class LazyGroup(click.Group):
    """Knows each command's name and one-line help; imports the command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of an auditor's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        with unsearched():
            command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command to run, or suggest one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from auditspec.spec.suggest import did_you_mean

            ctx.fail(f"no command {name!r}; {did_you_mean(name, COMMANDS, 'commands')}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="auditspec", message="auditspec %(version)s")
def cli() -> None:
    """Which training stage is answerable for a model's failure, by how much, and how sure are we?

    Data goes to stdout; progress and messages go to stderr.
    """


def main(begin: Callable[[], None] = lambda: None) -> None:
    """Run the command line; print deliberate errors without a traceback and exit with their code.

    Args:
        begin: what comes before.
    """
    try:
        begin()
        with own_process():
            code = cli.main(standalone_mode=False)
    except AuditspecError as error:
        click.echo(str(error), err=True)
        sys.exit(int(error.exit_code))
    except click.ClickException as error:
        error.show()
        sys.exit(int(Exit.USAGE))
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        click.echo("this is a bug in auditspec: please report it with the lines above", err=True)
        sys.exit(BUG)
    sys.exit(int(code) if isinstance(code, int) else 0)
