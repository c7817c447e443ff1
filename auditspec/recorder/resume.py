"""Where a record that was cut short can be taken up again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from auditspec.artifacts.checkpoints import read_metadata
from auditspec.errors import EvidenceError
from auditspec.record.format import state_file, steps_file


def last_whole_step(folder: Path) -> int:
    """The step of a stage up to which its segments are whole; 0 where none is.

    A segment is whole if its steps file and the state that ends it can be read.
    """
    step = 0
    while (part := folder / steps_file(step)).exists():
        try:
            end = step + pq.read_metadata(part).num_rows
            read_metadata(folder / state_file(end))
        except (EvidenceError, pa.ArrowException, OSError):
            break
        if end == step:
            break
        step = end
    return step


def drop_after(folder: Path, step: int) -> None:
    """Delete what a killed process left behind the last whole segment of a stage."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        kind, _, number = path.stem.partition("-")
        part = int(number) if number.isdigit() else None
        stale_state = kind == "state" and part is not None and part > step
        stale_part = kind in ("steps", "batches") and part is not None and part >= step
        if path.name.startswith(".") or stale_state or stale_part:
            path.unlink()
