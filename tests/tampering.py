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

from auditspec.record.format import HEADER, STEPS_SCHEMA
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
    (found,) = (recorded.folder / "record").glob(f"*-{stage}")
    return found


def change_steps(recorded: Recorded, stage: str, change: Callable[[Rows], Rows | None]) -> Recorded:
    """Rewrite the steps of a stage (one part file)."""
    path = stage_folder(recorded, stage) / "steps-000000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows = change(rows) or rows
    pq.write_table(pa.Table.from_pylist(rows, schema=STEPS_SCHEMA), path)
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
    """Rewrite `record.json`."""
    path = recorded.folder / "record" / HEADER
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    return reopened(recorded)
