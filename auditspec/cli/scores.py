"""`auditspec scores`: bring scores of other tools into a table."""

from __future__ import annotations

from pathlib import Path

import click

from auditspec.errors import UsageError


@click.group()
def scores() -> None:
    """Bring scores of other tools into the table that `metric: {name: external}` reads."""


@scores.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--from", "tool", type=click.Choice(["inspect", "lm-eval"]), required=True)
@click.option("--model", required=True, help="The model's digest, from manifest.json.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="A Parquet file.")
@click.option("--add", is_flag=True, help="Add to the table that is there.")
@click.option("--score", help="Which metric or scorer, where the log has several.")
@click.option("--filter", "filter_", help="Which filter, where lm-eval used several.")
@click.option(
    "--first",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The log's id of the data's first row; Inspect numbers samples from 1 where nobody does.",
)
def import_(
    files: tuple[Path, ...],
    tool: str,
    model: str,
    out: Path,
    add: bool,
    score: str | None,
    filter_: str | None,
    first: int,
) -> None:
    """Read the scores of one model out of logs: Inspect's .eval and .json, lm-eval's samples_*.jsonl.

    Reads FILES only; nothing is executed. A further file with the same examples is a further repetition.
    """
    from auditspec.score_logs import READERS
    from auditspec.score_logs.rows import Wanted
    from auditspec.score_logs.table import DIGEST, frame_of, write

    if not DIGEST.fullmatch(model):
        raise UsageError(
            f"{model!r} is no digest of a model",
            "take it from the manifest that auditspec counterfactuals wrote",
        )
    wanted = Wanted(score, filter_, first)
    frame = frame_of(model, [READERS[tool](path, wanted) for path in files])
    write(out, frame, add=add)
    click.echo(f"wrote {out}: {len(frame)} scores", err=True)
