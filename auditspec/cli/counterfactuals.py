"""`auditspec counterfactuals`: write the models of an audit's runs."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.isolation import isolation_option

if TYPE_CHECKING:
    from auditspec.sealed.isolation import Wanted


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the models. It must not exist yet, or be empty.",
)
@click.option("--force", is_flag=True, help="Replace the models that stand in the folder.")
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AUDITSPEC_CACHE",
    help="Folder of finished estimates; by default auditspec in the user's cache folder.",
)
@click.option("--no-cache", is_flag=True, help="Compute every estimate anew, and keep none.")
@isolation_option
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def counterfactuals(
    spec: Path,
    out: Path,
    force: bool,
    cache_folder: Path | None,
    no_cache: bool,
    isolation: Wanted,
    format_: str,
    quiet: bool,
) -> None:
    """Write the deployed model and the model without each stage as checkpoints, for other tools to score.

    The same runs as `run` makes, exactly or by the spec's estimator, with the models that they went through.
    manifest.json says which is which; its digests name the models in a table of scores. Runs the code that the
    spec names, as `run` does.

    Exits with 2 for a spec or folder that is wrong, 3 for evidence that does not carry an estimate, and 4 where
    the estimate fails.
    """
    from auditspec import api
    from auditspec.cli.progress import progress_on_stderr
    from auditspec.user_folders import cache_folder as default_cache

    with progress_on_stderr(quiet) as progress, redirect_stdout(sys.stderr):
        manifest = api.counterfactuals(
            spec,
            out,
            force=force,
            cache=None if no_cache else cache_folder or default_cache(),
            announce=lambda line: click.echo(line, err=True),
            progress=progress,
            isolation=isolation,
        )
    if format_ == "json":
        click.echo(json.dumps(manifest, indent=1))
        return
    for model in manifest["models"]:
        click.echo(f"{model['digest']}  {out / model['path']}")
