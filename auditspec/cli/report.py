"""`render`: the reports again, from results.json, without computing anything."""

from __future__ import annotations

from pathlib import Path

import click

from auditspec.report.exports import chosen, exports


@click.command()
@click.argument("results", type=click.Path(path_type=Path), metavar="RESULTS_JSON")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the reports; made if it does not exist. Never a signed packet.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(list(exports())),
    multiple=True,
    help="What to make; may be given several times.  "
    f"[default: {', '.join(export.name for export in chosen(None))}]",
)
@click.option("--force", is_flag=True, help="Replace reports that stand in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def render(results: Path, out: Path, formats: tuple[str, ...], force: bool, quiet: bool) -> None:
    """Make the reports again from a results.json.

    Nothing is computed or verified. The reports are marked UNSIGNED, because no signature covers
    them: the signed ones are those inside the packet.
    """
    from auditspec import api
    from auditspec.cli.progress import progress_on_stderr

    with progress_on_stderr(quiet) as progress:
        files = api.render(results, out, formats=formats or None, force=force, progress=progress)
    for path in files:
        click.echo(path)
