"""`init`, `validate`, `schema`, and `digest`: a spec from its first line to its lock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from auditspec.artifacts.manifest import Measured, digest_path
from auditspec.cli.pinning import changes, refuse_unnamed, rows_of
from auditspec.cli.place import PLACE
from auditspec.consistency.check import Checked, check
from auditspec.consistency.overlap import overlaps
from auditspec.errors import EvidenceError, Exit, Problem, SpecError, UsageError
from auditspec.fetched import fetched, local
from auditspec.resources import folder
from auditspec.spec import schema as schemas
from auditspec.spec.lock import read_lock, write_lock
from auditspec.spec.source import LoadedSpec, load

STARTER = "audit.yaml"

format_option = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=STARTER)
def init(path: Path) -> None:
    """Write a commented spec to start from, at PATH (audit.yaml)."""
    target = path / STARTER if path.is_dir() else path
    text = (folder("templates") / "starter" / STARTER).read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} is there already", "name another file") from None
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}", "check its folder"
        ) from None
    click.echo(f"wrote {target}; next: auditspec validate {target}", err=True)


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@format_option
@click.pass_context
def validate(context: click.Context, spec: Path, format_: str) -> None:
    """Check a spec, and hold it against its evidence, without running any code.

    Reports everything that is wrong in one pass, each with its line and column. Exits with 2 if the
    spec is wrong, and with 3 if evidence is missing, changed, or unsafe to read.
    """
    try:
        loaded = fetched(load(spec))
    except SpecError as error:
        _report(error.problems, (), format_)
        context.exit(Exit.USAGE)
    checked = check(loaded)
    problems = (*checked.spec_problems, *checked.evidence_problems)
    _report(problems, checked.warnings, format_)
    if checked.spec_problems:
        context.exit(Exit.USAGE)
    if checked.evidence_problems:
        context.exit(Exit.EVIDENCE)
    if format_ == "text":
        click.echo(_summary(loaded, checked))


@click.command()
@click.argument("name", type=click.Choice(list(schemas.MODELS)), default="auditspec-1")
@click.option(
    "--write",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write every schema into this folder instead.",
)
def schema(name: str, target: Path | None) -> None:
    """Print a published JSON Schema; NAME is auditspec-1 (the spec) unless given."""
    if target is None:
        click.echo(schemas.encode(schemas.document(name)), nl=False)
        return
    try:
        paths = schemas.write(target)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}", "check the folder"
        ) from None
    for path in paths:
        click.echo(f"wrote {path}", err=True)


@click.command()
@click.argument("paths", nargs=-1, type=PLACE)
@click.option(
    "--lock",
    "spec",
    type=click.Path(path_type=Path),
    help="Measure every artifact of this spec, and pin in its lock file those that it does not pin.",
)
@click.option(
    "--update",
    "updates",
    metavar="NAME",
    multiple=True,
    help="With --lock: an artifact whose pin may change; may be given several times.",
)
@click.option("--update-all", is_flag=True, help="With --lock: every pin may change.")
@format_option
def digest(
    paths: tuple[Path | str, ...],
    spec: Path | None,
    updates: tuple[str, ...],
    update_all: bool,
    format_: str,
) -> None:
    """Print the digests of files and folders, or pin those of a spec's artifacts.

    A pin that stands in the lock file already is changed only by its name, after what changed was
    told.
    """
    if bool(paths) == (spec is not None) or (spec is None and (updates or update_all)):
        raise UsageError("nothing to measure, or too much", "give either PATHS or --lock SPEC")
    if spec is None:
        _print_digests([(str(path), digest_path(local(path))) for path in paths], format_)
        return
    loaded = fetched(load(spec), anew=True)
    measured = {name: _measure(loaded, name) for name in loaded.spec.artifacts}
    artifacts = loaded.spec.artifacts
    unpinned = {name: m.digest for name, m in measured.items() if artifacts[name].digest is None}
    held, rows = read_lock(spec), rows_of(loaded)
    found = changes(held, {name: measured[name] for name in unpinned}, rows)
    refuse_unnamed(loaded, found, held, artifacts if update_all else updates)
    for change in found:
        click.echo(f"{change.name}: {change.words}", err=True)
    for name in sorted(held.digests.keys() - unpinned.keys()):
        click.echo(f"{name}: no longer pinned here", err=True)
    try:
        lock = write_lock(spec, unpinned, {n: rows[n] for n in sorted(rows.keys() & unpinned)})
    except OSError as error:
        raise UsageError(
            f"the lock cannot be written: {error.strerror}", "check the folder"
        ) from None
    _print_digests([(artifacts[name].path, m) for name, m in measured.items()], format_)
    click.echo(f"wrote {lock}: {_count(len(unpinned), 'digest')}", err=True)
    for warning in overlaps(loaded, {name: m.digest for name, m in measured.items()}):
        click.echo(_worded("warning", warning), err=True)


def _measure(loaded: LoadedSpec, name: str) -> Measured:
    artifact = loaded.spec.artifacts[name]
    try:
        found = digest_path(loaded.where(name))
    except EvidenceError as error:
        raise EvidenceError(f"artifact {name!r}: {error.message}", error.remedy) from None
    if artifact.digest not in (None, found.digest):
        raise EvidenceError(
            f"artifact {name!r}: digest is {found.digest}, the spec pins {artifact.digest}",
            "restore the pinned bytes, or correct the digest in the spec",
        )
    return found


def _print_digests(measured: Sequence[tuple[str, Measured]], format_: str) -> None:
    if format_ == "json":
        rows = [
            {"path": path, "digest": m.digest, "kind": m.kind, "size": m.size, "files": m.files}
            for path, m in measured
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for path, m in measured:
            click.echo(f"{m.digest}  {path}")


def _report(errors: Sequence[Problem], warnings: Sequence[Problem], format_: str) -> None:
    """Print problems in the order of the file: text to stderr, JSON to stdout."""
    found = [("error", problem) for problem in errors]
    found += [("warning", problem) for problem in warnings]
    found.sort(key=lambda item: (item[1].file, item[1].line, item[1].column))
    if format_ == "json":
        rows = [{"severity": severity, **asdict(problem)} for severity, problem in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for severity, problem in found:
        click.echo(_worded(severity, problem), err=True)


def _worded(severity: str, problem: Problem) -> str:
    return str(problem).replace(": error[", f": {severity}[", 1)


def _summary(loaded: LoadedSpec, checked: Checked) -> str:
    states = Counter(item.state for item in checked.evidence)
    return (
        f"{loaded.path}: valid ({_count(len(loaded.spec.stages), 'stage')}, "
        f"{_count(len(loaded.spec.behaviors), 'behaviour')}; "
        f"{_count(states['verified'], 'artifact')} verified)"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
