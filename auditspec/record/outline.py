"""What a record says without its tensors: the header, and what each step was made with.

Free of torch, for whoever compares a record with a spec before anything is computed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import read_verified
from auditspec.artifacts.manifest import Manifest
from auditspec.artifacts.parquet import read_table
from auditspec.errors import RecordError
from auditspec.record.format import (
    HEADER,
    LEAST,
    RecordHeader,
    StageHeader,
    TensorInfo,
    stage_folder,
    steps_file,
)

COLUMNS = ["groups", "batches.list.element.dataset"]


@dataclass(frozen=True)
class BatchOutline:
    """Where a microbatch's rows come from; None: the record holds the batch itself."""

    dataset: str | None


@dataclass(frozen=True)
class StepOutline:
    """The hyperparameters of each parameter group, and the microbatches of a step."""

    groups: tuple[dict[str, Any], ...]
    batches: tuple[BatchOutline, ...]


@dataclass(frozen=True)
class StageOutline:
    """A stage's header and steps; no steps where only boundaries were recorded."""

    header: StageHeader
    steps: tuple[StepOutline, ...]
    parameters: tuple[TensorInfo, ...]
    """Of the stage's model."""


def read_outline(folder: Path, header: RecordHeader, stage: StageHeader) -> StageOutline:
    """Read what the steps of one of a header's stages were made with.

    Raises:
        RecordError: if a part cannot be read, or a complete stage lacks steps.
        EvidenceError: if a part is unsafe to read.
    """
    place = folder / stage_folder(header.stages.index(stage), stage.id)
    steps: list[StepOutline] = []
    while (path := place / steps_file(len(steps))).exists():
        part = _read_part(path)
        steps += part
        if not part:
            break
    if stage.complete and header.every != "boundaries" and len(steps) != stage.steps:
        raise RecordError(
            f"{place.name}: {len(steps)} of {stage.steps} steps are recorded",
            "ask the trainer for the complete record",
        )
    parameters = header.parameters if stage.parameters is None else stage.parameters
    return StageOutline(stage, tuple(steps), parameters)


def read_header(folder: Path, manifest: Manifest | None = None) -> RecordHeader:
    """Read `record.json`.

    Raises:
        RecordError: if it is missing, malformed, or of an unknown version.
    """
    path = folder / HEADER
    if not path.exists():
        raise RecordError(
            f"{folder} holds no {HEADER}", "point at the folder that the recorder wrote"
        )
    data = read_verified(path, manifest.entry(HEADER).digest if manifest else None)
    strict_json.parse(data, str(path))  # pydantic alone takes a key that stands twice
    try:
        return RecordHeader.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(
            f"{path}: not a training record of version 1: {place} {first['msg']}",
            "ask the trainer for the record again",
        ) from None


def _read_part(path: Path) -> list[StepOutline]:
    data = read_verified(path, None)
    groups: dict[str, tuple[dict[str, Any], ...]] = {}
    steps = []
    try:
        rows = read_table(data, COLUMNS, LEAST).to_pylist()
        for row in rows:
            text = row["groups"]
            if text not in groups:  # they seldom change from one step to the next
                groups[text] = tuple(dict(group) for group in json.loads(text))
                if any(type(group.get("lr")) not in (int, float) for group in groups[text]):
                    raise ValueError("a step has no learning rate")
            batches = tuple(BatchOutline(batch["dataset"]) for batch in row["batches"])
            steps.append(StepOutline(groups[text], batches))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise RecordError(
            f"{path.parent.name}/{path.name}: cannot be read: {why}", "restore the file"
        ) from None
    return steps
