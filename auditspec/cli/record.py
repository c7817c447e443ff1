"""`auditspec record`: look into a training record, sign it as its trainer, or make one of a run that has none."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditspec.cli.sealing import sealer_of, sealing_options
from auditspec.errors import Exit, UsageError

if TYPE_CHECKING:
    from auditspec.record.format import RecordHeader


@click.group()
def record() -> None:
    """Look into a training record, check it, sign it, or make one of a run that nobody recorded."""


@record.command()
@click.argument("folder", metavar="RECORD", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def show(folder: Path, format_: str) -> None:
    """Show a record's stages, states, size, and whether it is complete and signed.

    Runs no code and changes nothing; the record of a killed run can be shown too.
    """
    from auditspec.artifacts.inspect import ITS_SIGNATURE
    from auditspec.artifacts.manifest import digest_path
    from auditspec.record.trajectory import Trajectory
    from auditspec.sign.record import record_signers

    trajectory = Trajectory.open(folder)
    header, measured = trajectory.header, digest_path(folder)
    facts: dict[str, Any] = {
        "record": str(folder),
        "version": header.auditspec_record,
        "complete": header.complete,
        "grade": trajectory.grade,
        "created": header.created.isoformat(),
        "versions": header.versions,
        "device": header.device,
        "parameters": sum(
            math.prod(info.shape) for info in (trajectory.stages or (header,))[-1].parameters
        ),
        "digest": measured.digest,
        "bytes": measured.size,
        "regenerated": None
        if header.regenerated is None
        else [met.model_dump() for met in header.regenerated.checkpoints],
        "signed_by": list(record_signers(folder)) if (folder / ITS_SIGNATURE).exists() else [],
        "stages": [
            {
                "id": stage.id,
                "optimizer": stage.header.optimizer,
                "boundary": stage.header.boundary,
                "steps": f"{len(stage.steps)}/{stage.header.steps}",
                "states": len(stage.state_steps),
                "data": sorted(stage.datasets),
                "seconds": round(sum(step.seconds for step in stage.steps), 3),
                "complete": stage.header.complete,
                "self_check": stage.header.self_check and stage.header.self_check.outcome,
            }
            for stage in trajectory.stages
        ],
    }
    if format_ == "json":
        click.echo(json.dumps(facts, indent=1))
        return
    for key in ("record", "created", "grade", "device", "parameters", "bytes", "digest"):
        click.echo(
            f"{key:<11} {facts[key]:,}"
            if key in ("parameters", "bytes")
            else f"{key:<11} {facts[key]}"
        )
    click.echo(f"{'complete':<11} {'yes' if header.complete else 'no'}")
    click.echo(f"{'signed by':<11} {', '.join(facts['signed_by']) or 'nobody'}")
    click.echo(
        f"{'stage':<20} {'optimizer':<9} {'state':<6} {'steps':>11} {'states':>6}  {'self-check':<10}  data"
    )
    for stage in facts["stages"]:
        click.echo(
            f"{stage['id']:<20} {stage['optimizer']:<9} {stage['boundary']:<6} "
            f"{stage['steps']:>11} {stage['states']:>6}  {stage['self_check'] or 'none':<10}  "
            f"{', '.join(stage['data'])}"
        )
    _show_checkpoints(header)


@record.command("import")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--checkpoints",
    metavar="STAGE=PATH",
    multiple=True,
    help="What a stage saved: a folder of checkpoints, or a file; once a stage.",
)
@click.option(
    "--run",
    metavar="MODULE:FUNCTION",
    help="Function of the spec's code that trains and records every stage with the recorder that it is given.  "
    "[default: the trainers that the stages' objectives build]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the record.  [default: the spec's artifact record]",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Steps between recorded states.",
)
def import_(
    spec: Path, checkpoints: tuple[str, ...], run: str | None, out: Path | None, every: int
) -> None:
    """Make the record of a run that nobody recorded, from its code, data, first weights, and checkpoints.

    Executes the code that the spec names. The run is trained again, and held against every checkpoint
    that it had saved; where one is missed, the record holds the stages' boundaries only.
    """
    from auditspec.api import import_record

    header = import_record(
        spec,
        dict(_named_path(text, "--checkpoints", "STAGE=PATH") for text in checkpoints),
        run=run,
        out=out,
        every=every,
        announce=lambda line: click.echo(line, err=True),
    )
    _show_checkpoints(header)


def _show_checkpoints(header: RecordHeader) -> None:
    """How close each checkpoint of a run that was made again was met."""
    again = header.regenerated
    if again is None:
        return
    columns = ("weights", "buffers", "optimizer", "random")
    click.echo(
        f"{'checkpoint of':<20} {'step':>6} " + " ".join(f"{name:>9}" for name in columns).rstrip()
    )
    words = {None: "-", True: "bitwise", False: "other"}
    for match in again.checkpoints:
        parts = (
            *map(_distance, (match.weights, match.buffers, match.optimizer)),
            words[match.random],
        )
        click.echo(f"{match.stage:<20} {match.step:>6} " + " ".join(f"{part:>9}" for part in parts))
    if again.arguments:
        click.echo(f"saved with another value of: {', '.join(again.arguments)}")
    if again.missed:
        first = again.missed[0]
        click.echo(
            f"missed at step {first.step} of {first.stage}: the record holds the stages' boundaries only"
        )


def _distance(part: float | str | None) -> str:
    if part is None or isinstance(part, str):
        return part or "-"
    return "bitwise" if part == 0 else f"{part:.1e}"


@record.command()
@click.argument("folder", metavar="RECORD", type=click.Path(path_type=Path))
@click.option("--stage", help="Only this stage.  [default: all]")
@click.option(
    "--code",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the training code is imported from.  [default: the folder you are in]",
)
@click.option("--data", multiple=True, metavar="NAME=PATH", help="A data set that was trained on.")
@click.option(
    "--windows",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="The first window of each stage, or every one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    folder: Path, stage: str | None, code: Path, data: Sequence[str], windows: str, as_json: bool
) -> int:
    """Re-run a record's windows, and say whether they hold, and if not, why.

    Runs the training code. The record may be unfinished.
    """
    from auditspec.recorder.recheck import check_folder

    paths = dict(_named_path(text, "--data", "NAME=PATH") for text in data)
    sys.path.insert(0, str(code.absolute().parent if code.is_file() else code.absolute()))
    checked = check_folder(
        folder,
        stage,
        paths,
        every=windows == "all",
    )
    lines = [line.plain() for line in checked]
    if as_json:
        click.echo(json.dumps({"record": str(folder), "windows": lines}, indent=1))
    else:
        for line in lines:
            click.echo(
                f"{line['stage']:<20} {line['first']:>7} to {line['last']:<7} {line['outcome']}"
            )
            if line["cause"]:
                click.echo(f"  {line['problem']}: {line['cause']}\n  remedy: {line['remedy']}")
    return int(Exit.EVIDENCE if any(line["cause"] for line in lines) else Exit.PASS)


@record.command()
@click.argument("folder", metavar="RECORD", type=click.Path(path_type=Path))
@sealing_options
def sign(folder: Path, **options: Any) -> None:
    """Sign a finished record's manifest as its trainer.

    Do it before the auditor pins the record: the signature becomes part of the folder.
    """
    from auditspec.sign.record import sign_record

    sealer = sealer_of(**options)
    sign_record(folder, sealer)
    click.echo(f"signed by {sealer.signer.keyid}")


@record.command()
@click.argument("commitment", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="File of the sealed one."
)
@sealing_options
def commit(commitment: Path, out: Path, **options: Any) -> None:
    """Sign what was committed to for a stage, before the stage is trained.

    COMMITMENT is what `Recorder.commit` gave, encoded into a file. What dates it, a timestamp or a log, shows
    later that it is older than the record.
    """
    from auditspec.artifacts.files import read_regular
    from auditspec.sign.sealing import seal_commitment

    sealer = sealer_of(**options)
    sealed = seal_commitment(read_regular(commitment), sealer, out)
    click.echo(f"stage {sealed.stage}: {sealed.steps} steps, signed by {sealer.signer.keyid}")


def _named_path(text: str, option: str, form: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"{option} {text}: is no {form}", f"write {option} {form}")
    return name, Path(path)
