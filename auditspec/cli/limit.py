"""`auditspec limit`: propose a limit for each behaviour."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.isolation import isolation_option

if TYPE_CHECKING:
    from auditspec.limits import Proposal
    from auditspec.sealed.isolation import Wanted


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--clean",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Weights of a clean model of the same architecture, trained with another seed; three or four are best.",
)
@isolation_option
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def limit(spec: Path, clean: tuple[Path, ...], isolation: Wanted, format_: str) -> None:
    """Propose a limit for each behaviour, with what it rests on and its spread.

    From clean models (--clean); without them from runs on the spec's reference evidence; without that
    from the run's own able states, whose beginning such a limit cannot judge. Executes the code that the
    spec names, after listing it.

    Exits with 2 for a spec that is wrong, 3 for evidence that is missing or changed, and 4 where the
    audited code fails.
    """
    from auditspec.cli.progress import progress_on_stderr
    from auditspec.confinement import Confinement
    from auditspec.fetched import fetched
    from auditspec.limits import propose
    from auditspec.spec.source import load

    named = {str(path): path for path in clean}
    with progress_on_stderr(quiet=format_ == "json") as progress:
        loaded = fetched(load(spec), progress=progress)
        found = propose(
            loaded,
            named,
            lambda line: click.echo(line, err=True),
            progress,
            Confinement(isolation),
        )
    for behavior in loaded.spec.behaviors:
        if behavior.metric.elsewhere:
            click.echo(
                f"{behavior.id}: no limit is proposed, since another tool makes its scores: let it score clean models",
                err=True,
            )
    if format_ == "json":
        facts = [asdict(p) | {"mean": p.mean, "spread": p.spread} for p in found]
        click.echo(json.dumps(facts, indent=1))
        return
    for proposal in found:
        _print(proposal)


def _print(proposal: Proposal) -> None:
    from auditspec.report import numbers
    from auditspec.report.words import plain

    def words(value: float) -> str:
        return plain(numbers.level(value, "", numbers.unit_of(proposal.unit)))

    many = len(proposal.levels)
    spread = "" if proposal.spread is None else f", standard deviation {words(proposal.spread)}"
    click.echo(f"{proposal.behavior}: limit {proposal.limit:.4g}")
    click.echo(
        f"  from {proposal.source}: {many} {'level' if many == 1 else 'levels'}, mean "
        f"{words(proposal.mean)}{spread}; tolerance {words(proposal.tolerance)}; deployed "
        f"{words(proposal.deployed)}"
    )
    for level in proposal.levels[:8]:
        click.echo(f"    {words(level.level):>12}  {level.name}")
    if many > 8:
        click.echo(f"    and {many - 8} more")
    if proposal.source == "the run itself":
        click.echo("  a fault in the initial weights or the first stage would be in it too")
