"""Records that lie: copies of a recorded run with one part changed, and otherwise consistent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from training import Recorded

from auditspec.artifacts.checkpoints import read_metadata, read_tensors, write_tensors
from auditspec.record.format import HEADER, STEPS_SCHEMA, state_file
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory

Rows = list[dict[str, Any]]


def copy(recorded: Recorded, folder: Path) -> Recorded:
    """The same run in a folder of its own, to be tampered with."""
    shutil.copytree(recorded.folder / "record", folder / "record")
    return replace(recorded, folder=folder, trajectory=Trajectory.open(folder / "record"))


def reopened(recorded: Recorded) -> Recorded:
    """The record as it now stands on disk."""
    return replace(recorded, trajectory=Trajectory.open(recorded.folder / "record"))


def stage_folder(recorded: Recorded, stage: str) -> Path:
    return folder_of(recorded.folder / "record", stage)


def folder_of(record: Path, stage: str) -> Path:
    (found,) = record.glob(f"*-{stage}")
    return found


def rewrite_steps(record: Path, stage: str, change: Callable[[Rows], Rows | None]) -> None:
    """Rewrite the steps of a stage (one part file)."""
    path = folder_of(record, stage) / "steps-000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema=STEPS_SCHEMA), path)


def rewrite_header(record: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite `record.json`."""
    header = json.loads((record / HEADER).read_text())
    change(header)
    (record / HEADER).write_text(json.dumps(header))


def rewrite_state(record: Path, stage: str, step: int, state: State) -> None:
    """Put other parameters, buffers, and moments into a kept state."""
    path = folder_of(record, stage) / state_file(step)
    tensors = {n: t for n, t in read_tensors(path).items() if n.startswith("rng/")}
    tensors |= {f"param/{name}": t for name, t in state.parameters.items()}
    tensors |= {f"buffer/{name}": t for name, t in state.buffers.items()}
    for name, slots in state.optimizer_state.items():
        tensors |= {f"optim/{name}/{key}": value for key, value in slots.items()}
    write_tensors(path, tensors, read_metadata(path))


def renumber_state(record: Path, stage: str, step: int, new: int) -> None:
    """Say that a kept state is that before another step."""
    path = folder_of(record, stage) / state_file(step)
    tensors, info = read_tensors(path), json.loads(read_metadata(path)["auditspec"])
    write_tensors(path, tensors, {"auditspec": json.dumps(info | {"step": new})})
    path.rename(path.with_name(state_file(new)))


def change_steps(recorded: Recorded, stage: str, change: Callable[[Rows], Rows | None]) -> Recorded:
    rewrite_steps(recorded.folder / "record", stage, change)
    return reopened(recorded)


def change_option(recorded: Recorded, stage: str, step: int, group: int = 0, **options: Any):
    """Change hyperparameters of one step."""

    def change(rows: Rows) -> None:
        groups = json.loads(rows[step]["groups"])
        assert all(groups[group].get(key) != value for key, value in options.items())
        groups[group] |= options
        rows[step]["groups"] = json.dumps(groups)

    return change_steps(recorded, stage, change)


def change_header(recorded: Recorded, change: Callable[[dict[str, Any]], None]) -> Recorded:
    rewrite_header(recorded.folder / "record", change)
    return reopened(recorded)
