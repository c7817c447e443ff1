"""Records that lie: one thing changed after the fact, everything else made to agree with it.

The record's own manifest is written anew, the spec declares what the record now says, and the caller
pins every artifact again: only running the record again can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from auditspec.artifacts.checkpoints import read_metadata, read_tensors, write_tensors
from auditspec.artifacts.manifest import digest_path
from auditspec.record.format import HEADER, STEPS_SCHEMA
from auditspec.record.trajectory import Trajectory
from auditspec.recorder.writer import finish_manifest

from .draw import Pipeline
from .families import FAMILIES, LYING
from .folders import Spec, data_of, write_rows


def lie_of(pipeline: Pipeline) -> str | None:
    """What is changed after the fact in a pipeline whose record lies; None for any other."""
    if pipeline.family != LYING:
        return None
    return LIES[pipeline.seed // len(FAMILIES) % len(LIES)]


def tell(lie: str, pipeline: Pipeline, folder: Path, spec: Spec) -> None:
    """Change what a lie changes, in the folder and in the spec."""
    _LIES[lie](pipeline, folder, spec, np.random.default_rng([pipeline.seed, 7]))
    finish_manifest(folder / "record")


def swapped_checkpoint(
    pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator
) -> None:
    """The weights of an earlier stage's end are said to be deployed."""
    stage = int(rng.integers(len(pipeline.stages) - 1))
    last = Trajectory.open(folder / "record").stages[stage].last
    write_tensors(folder / "model.safetensors", dict(last.parameters))


def edited_weights(pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator) -> None:
    """One recorded state has other weights."""
    states = sorted((folder / "record").glob("*/state-*.safetensors"))
    _edit(states[int(rng.integers(len(states)))], rng)


def edited_end(pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator) -> None:
    """The last state and the deployed weights agree, and neither was trained."""
    last = max((folder / "record").glob("*/state-*.safetensors"))
    name, weights = _edit(last, rng)
    path = folder / "model.safetensors"
    write_tensors(path, read_tensors(path) | {name: weights})


def learning_rate(pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator) -> None:
    """A stage is said to have had another learning rate."""
    stage = int(rng.integers(len(pipeline.stages)))
    factor = float(rng.choice([0.5, 0.8, 0.95, 1.05, 1.25, 2.0]))

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            groups = json.loads(row["groups"])
            for group in groups:
                group["lr"] *= factor
            row["groups"] = json.dumps(groups)

    _rewrite(folder, stage, change)
    header = json.loads((folder / "record" / HEADER).read_text())
    for group in header["stages"][stage]["groups"]:
        group["options"]["lr"] *= factor
    (folder / "record" / HEADER).write_text(json.dumps(header))
    spec["stages"][stage]["optimizer"]["lr"] *= factor


def other_batches(pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator) -> None:
    """One step is said to have read other rows."""
    stage = int(rng.integers(len(pipeline.stages)))
    step = int(rng.integers(pipeline.stages[stage].steps))

    def change(rows: list[dict[str, Any]]) -> None:
        for place, row in enumerate(rows):
            if row["step"] == step:
                row["batches"] = rows[place - 1]["batches"]

    _rewrite(folder, stage, change)


def swapped_data(pipeline: Pipeline, folder: Path, spec: Spec, rng: np.random.Generator) -> None:
    """The guilty stage's wrong labels are put right after the fact."""
    index, stage = next((i, s) for i, s in enumerate(pipeline.stages) if s.clean is not None)
    assert stage.clean is not None
    name = data_of(stage)
    path = folder / f"{name}.parquet"
    write_rows(path, stage.clean)
    header = json.loads((folder / "record" / HEADER).read_text())
    header["stages"][index]["datasets"][name] = digest_path(path).digest
    (folder / "record" / HEADER).write_text(json.dumps(header))


_LIES: dict[str, Callable[[Pipeline, Path, Spec, np.random.Generator], None]] = {
    "swapped-checkpoint": swapped_checkpoint,
    "edited-weights": edited_weights,
    "edited-end": edited_end,
    "learning-rate": learning_rate,
    "other-batches": other_batches,
    "swapped-data": swapped_data,
}
LIES = tuple(_LIES)


def _edit(path: Path, rng: np.random.Generator) -> tuple[str, torch.Tensor]:
    """Add noise of 1 % to one weight matrix of a state; gives its name in the model, and the matrix."""
    tensors, metadata = read_tensors(path), read_metadata(path)
    names = sorted(n for n in tensors if n.startswith("param/") and n.endswith("weight"))
    name = names[int(rng.integers(len(names)))]
    noise = torch.tensor(rng.normal(size=tuple(tensors[name].shape))).to(tensors[name])
    tensors[name] = tensors[name] * (1 + 0.01 * noise)
    write_tensors(path, tensors, metadata)
    return name.removeprefix("param/"), tensors[name]


def _rewrite(folder: Path, stage: int, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the recorded steps of a stage."""
    (found,) = (folder / "record").glob(f"{stage:02d}-*")
    for path in sorted(found.glob("steps-*.parquet")):
        rows = pq.read_table(path).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=STEPS_SCHEMA), path)
