"""`render`: the reports again, from results.json, without computing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.errors import EvidenceError, UsageError

if TYPE_CHECKING:
    from auditspec.results import AuditResult

ENVELOPE = "packet.dsse.json"
FORMATS = ("html", "pdf")


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
    type=click.Choice(FORMATS),
    multiple=True,
    help="Which report; may be given twice.  [default: both]",
)
@click.option("--force", is_flag=True, help="Replace reports that stand in the folder.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
def render(results: Path, out: Path, formats: tuple[str, ...], force: bool, quiet: bool) -> None:
    """Make the reports again from a results.json.

    Nothing is computed or verified. The reports are marked UNSIGNED, because no signature covers
    them: the signed ones are those inside the packet.
    """
    from auditspec.cli.progress import progress_on_stderr

    result, data = read_results(results)
    result = result.model_copy(update={"signer": None})
    chosen = [name for name in FORMATS if name in (formats or FORMATS)]
    targets = {name: out / f"report.{name}" for name in chosen}
    _check_folder(out, list(targets.values()), force)
    with progress_on_stderr(quiet) as progress:
        with progress.phase("drawing the report"):
            from auditspec.report.exports.html import render_html

            html = render_html(result)
        made = {"html": html.encode()}
        if "pdf" in targets:
            with progress.phase("setting the PDF"):
                from auditspec.report.exports.pdf import render_pdf

                made["pdf"] = render_pdf(result, data, html=html)
    for name, path in targets.items():
        _write(path, made[name], force)
        click.echo(path)


def read_results(path: Path) -> tuple[AuditResult, bytes]:
    """The audit result in a file, and the file's bytes.

    Raises:
        UsageError: if the file cannot be read, is not JSON (with line and column), or does not hold
            results of a known version (with the place inside it).
    """
    from auditspec.artifacts.files import read_regular
    from auditspec.sign.packet import decode_results

    remedy = "give the results.json that `auditspec run` wrote"
    try:
        data = read_regular(path)
        json.loads(data)
        return decode_results(data, str(path)), data
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UsageError(f"{place}: not JSON: {error.msg}", remedy) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}", remedy) from None
    except EvidenceError as error:
        raise UsageError(error.message, error.remedy or remedy) from None


def _check_folder(out: Path, targets: list[Path], force: bool) -> None:
    if (out / ENVELOPE).exists():
        raise UsageError(
            f"{out}: holds a signed packet ({ENVELOPE}), which render never changes",
            "choose another folder",
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is not a folder", "choose another name")
    taken = [path for path in targets if path.exists() or path.is_symlink()]
    if taken and not force:
        names = ", ".join(str(path) for path in taken)
        raise UsageError(f"{names}: exists already", "choose another folder, or add --force")


def _write(path: Path, data: bytes, force: bool) -> None:
    from auditspec.artifacts.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, overwrite=force)
    except FileExistsError:
        raise UsageError(f"{path}: exists already", "add --force to replace it") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror})", "check the folder's permissions"
        ) from None
