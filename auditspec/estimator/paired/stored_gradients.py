"""Gradients of the recorded run, kept by whoever re-runs the record anyway.

Paired replay needs the recorded run's gradient at every step (`signals.py`). Where neither the
recorded moments hold it nor anybody kept it, the stage is run once more. A check that re-runs the
whole record in the precision of the estimate computes the very same gradients: from there they are
kept in a temporary file, in memory while it is small, and cost nothing again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import torch

from auditspec.engine.clipping import clip
from auditspec.engine.optimizers.agreement import tells_gradients
from auditspec.engine.rerun import StepGradient
from auditspec.errors import UsageError
from auditspec.estimator.paired.step_signals import Signal
from auditspec.record.trajectory import StageTrajectory, Trajectory

LARGEST = 4 * 2**30
"""Bytes that kept gradients may take; where they would take more, none is kept."""
IN_MEMORY = 2**28
"""Bytes up to which the file stays in memory."""


def keepable(trajectory: Trajectory) -> frozenset[str]:
    """Ids of the stages whose recorded gradients are worth keeping, and can be.

    Those after the first that cannot be read off the record. None where training changes buffers,
    whose batch statistics a re-run does not show, or where all would take more than `LARGEST` bytes.
    """
    stages = trajectory.stages[1:]
    if any(
        not torch.equal(b, s.first.buffers[n]) for s in stages for n, b in s.last.buffers.items()
    ):
        return frozenset()
    wanted = [s for s in stages if s.steps and not tells_gradients(s)]
    found = frozenset(stage.id for stage in wanted)
    return found if kept_bytes(trajectory, found) <= LARGEST else frozenset()


def kept_bytes(trajectory: Trajectory, stages: Collection[str]) -> int:
    """Bytes that the gradients of some stages take."""
    return sum(
        len(stage.steps) * math.prod(info.shape) * getattr(torch, info.dtype).itemsize
        for stage in trajectory.stages
        for info in stage.parameters
        if stage.id in stages and info.name not in stage.header.frozen
    )


@contextmanager
def stored_gradients(
    stages: Collection[str], folder: Path | None = None
) -> Iterator[StoredGradients]:
    """Gradients that are forgotten at the end.

    Args:
        stages: ids of the stages whose gradients are kept.
        folder: where the file lies once it is too large for memory; None: the system's folder of
            temporary files.
    """
    with tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder) if folder else None) as file:
        yield StoredGradients(stages, file)


class StoredGradients:
    """Clipped gradients of every step of some stages.

    Args:
        stages: ids of the stages whose gradients are kept.
        file: where they are kept.
    """

    def __init__(self, stages: Collection[str], file: IO[bytes]) -> None:
        self.stages = frozenset(stages)
        self._file = file
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    def keep(self, step_gradient: StepGradient) -> None:
        """Keep the gradient of a step of the recorded run, if it is of one of the stages.

        Raises:
            UsageError: if the file cannot be written.
        """
        if step_gradient.stage.id not in self.stages:
            return
        buffer = BytesIO()
        clipped = clip(step_gradient.gradients, step_gradient.stage.header.clip_norm)
        torch.save({n: g.cpu() for n, g in clipped.items()}, buffer)
        data = buffer.getvalue()
        try:
            begin = self._file.seek(0, 2)
            self._file.write(data)
        except OSError as error:
            raise UsageError(
                f"gradients of the recorded run cannot be kept ({error.strerror})",
                "free some space in the folder of --cache, or for temporary files (TMPDIR)",
            ) from None
        self._places[step_gradient.stage.id, step_gradient.step.index] = begin, len(data)

    def signals(
        self, stage: StageTrajectory, start: int, device: torch.device
    ) -> Iterator[tuple[Signal, StepGradient | None]]:
        """y_k of the recorded run from step `start` on, as `recorded_signals` gives them."""
        for step in stage.steps[start:]:
            begin, size = self._places[stage.id, step.index]
            self._file.seek(begin)
            data = BytesIO(self._file.read(size))
            yield Signal(torch.load(data, map_location=device, weights_only=True), {}, {}), None
