"""Write the parts of a training record so that a killed process leaves only whole ones.

Every file is written aside and renamed. A segment counts once its steps file stands; the state
that ends it was renamed before it. The parts do not wait for the disk: after a power failure the
last of them may be damaged, and a resumed run drops it.
"""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from auditspec.artifacts.checkpoints import write_tensors
from auditspec.artifacts.files import write_atomically
from auditspec.artifacts.inspect import OWN_MANIFEST, without_own
from auditspec.artifacts.manifest import Manifest
from auditspec.record.batches import taken_apart
from auditspec.record.codec import encoded
from auditspec.record.format import (
    HEADER,
    STEPS_SCHEMA,
    RecordHeader,
    StateInfo,
    batches_file,
    dump_options,
    first_segment,
    segment_length,
    state_file,
    steps_file,
)
from auditspec.record.state import State
from auditspec.record.trajectory import Microbatch
from auditspec.recorder.events import StepMade
from auditspec.recorder.writer_thread import Background


class StageWriter:
    """Writes one stage's folder; steps are held until their segment ends."""

    def __init__(self, folder: Path, record: RecordHeader, background: Background) -> None:
        self.folder = folder
        self.layout = record.layout
        self._every = record.every
        self._segment = segment_length(record.every)
        self._first = first_segment(record.every)
        self._start = 0
        self._rows: list[dict[str, Any]] = []
        self._tensors: dict[str, Tensor] = {}
        self._stored = 0
        self._background = background

    def open(self, start: int) -> None:
        """Begin at a step that starts a segment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._start = start

    def states_of(self, steps: int) -> int:
        """How many states a stage of `steps` steps keeps."""
        return 2 if self._every == "boundaries" else 2 + (steps - 1) // self._every

    def wants_state(self, step: int, last: int) -> bool:
        """Whether the state before `step` is kept."""
        return step == last or (self._every != "boundaries" and step % self._every == 0)

    def segment_ends(self, step: int) -> bool:
        """Whether the segment ends before `step`."""
        return step == self._first or step % self._segment == 0

    def add_step(self, step: int, event: StepMade, seconds: float) -> None:
        """Note a step; its loss is the weighted sum over its microbatches.

        Args:
            step: its number in the stage.
            event: what its source told.
            seconds: since the end of the step before.
        """
        batches = [self._row(p.microbatch) for p in event.passes]
        self._rows.append({"step": step, "seconds": seconds, "made": event, "batches": batches})

    def write_state(self, state: State, stage: str, step: int) -> None:
        """Keep a state."""
        self._background.submit(partial(self._put_state, state, stage, step))

    def flush(self, step: int) -> None:
        """Write the open segment, which ends before `step`."""
        if self._every != "boundaries" and self._rows:
            self._background.submit(
                partial(self._put_segment, self._start, self._rows, self._tensors)
            )
        self._rows, self._tensors, self._stored, self._start = [], {}, 0, step

    def _row(self, microbatch: Microbatch) -> dict[str, Any]:
        """A microbatch as the steps file has it; its tensors go to the batches file."""
        prefix, form = None, None
        if microbatch.batch is not None:
            prefix = f"batch-{self._stored:06d}"
            self._stored += 1
            tensors, form = taken_apart(microbatch.batch)
            self._tensors |= {f"{prefix}/{i}": t for i, t in enumerate(tensors)}
        return {
            "dataset": microbatch.dataset,
            "ids": None if microbatch.dataset is None else list(microbatch.ids),
            "tensors": prefix,
            "form": form,
            "weight": microbatch.weight,
            "scale": microbatch.scale,
            "rank": microbatch.rank,
            **{f"rng_{kind}": state for kind, state in microbatch.rng.items()},
        }

    def _put_state(self, state: State, stage: str, step: int) -> None:
        tensors, scalars = encoded(state)
        info = StateInfo(stage=stage, step=step, scalars=scalars)
        path = self.folder / state_file(step)
        write_tensors(path, tensors, {"auditspec": info.model_dump_json()}, durable=False)

    def _put_segment(
        self, start: int, rows: list[dict[str, Any]], tensors: dict[str, Tensor]
    ) -> None:
        if tensors:
            write_tensors(self.folder / batches_file(start), tensors, durable=False)
        plain = [row | _plain(row.pop("made")) for row in rows]
        part = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(plain, schema=STEPS_SCHEMA), part)
        write_atomically(self.folder / steps_file(start), part.getvalue(), durable=False)


def write_header(folder: Path, header: RecordHeader) -> None:
    """Write `record.json`."""
    write_atomically(folder / HEADER, header.model_dump_json(indent=2).encode(), durable=False)


def finish_manifest(folder: Path) -> None:
    """Write the manifest of every file of a finished record."""
    files = without_own(Manifest.scan(folder))
    write_atomically(folder / OWN_MANIFEST, files.encode())


def _plain(event: StepMade) -> dict[str, Any]:
    """A step's plain values; made when the segment is written, not while training waits."""
    losses = [
        p.microbatch.weight * float(p.loss)
        for p in event.passes
        if p.loss is not None and p.microbatch.weight
    ]
    loss = sum(losses) if losses else None
    norm = None if event.gradient_norm is None else float(event.gradient_norm)
    return {
        "groups": dump_options(event.groups),
        "without_gradient": event.without_gradient,
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "grad_norm": norm if norm is not None and math.isfinite(norm) else None,
    }
