"""Gradients of the recorded run, for whoever goes along it: a service of the estimates' context.

An estimate may need the recorded run's signal at every step (`step_signals`). It stands in the recorded
moments, where every state was recorded and the first moment is linear in it; otherwise the stage is run
once more. Whoever re-runs the record anyway, in the precision of the estimate, computes the very same
gradients: put here, they lie in a temporary file, in memory while it is small, and cost nothing again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from auditspec.engine.clipping import clip
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.optimizers.agreement import tells_gradients
from auditspec.errors import UsageError
from auditspec.estimator.step_signals import Signal, recorded_signals, signal_of, state_of
from auditspec.record.codec import decoded, encoded, from_bytes, to_bytes
from auditspec.record.trajectory import StageTrajectory, Trajectory

LARGEST = 4 * 2**30
"""Bytes that stored gradients may take; where they would take more, none is stored."""
IN_MEMORY = 2**28
"""Bytes up to which the file stays in memory."""


class RecordedGradients:
    """Clipped gradients of every step of the recorded run: stored, read off the record, or computed again.

    Args:
        stored: ids of the stages whose gradients somebody who re-runs the record puts here.
        file: where they are stored; None while nothing is put here, as where costs are forecast.
    """

    def __init__(self, stored: Collection[str] = (), file: IO[bytes] | None = None) -> None:
        self.stored = frozenset(stored)
        self._file = file
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    def cost(self, stage: StageTrajectory) -> int:
        """Minibatch gradients that all of a stage's cost whoever asks for them."""
        if stage.id in self.stored or tells_gradients(stage):
            return 0
        return sum(len(step.batches) for step in stage.steps)

    def put(self, step_gradient: StepGradient) -> None:
        """Store the gradient of a step of the recorded run, if it is of one of the stages.

        Raises:
            UsageError: if the file cannot be written.
        """
        if step_gradient.stage.id not in self.stored or self._file is None:
            return
        clipped = clip(step_gradient.gradients, step_gradient.stage.header.clip_norm)
        data = to_bytes(*encoded(state_of(Signal(clipped, {}, {}))))
        try:
            begin = self._file.seek(0, 2)
            self._file.write(data)
        except OSError as error:
            raise UsageError(
                f"gradients of the recorded run cannot be stored ({error.strerror})",
                "free some space in the folder of --cache, or for temporary files (TMPDIR)",
            ) from None
        self._places[step_gradient.stage.id, step_gradient.step.index] = begin, len(data)

    def signals(
        self, engine: Engine, stage: StageTrajectory, start: int = 0
    ) -> Iterator[tuple[Signal, StepGradient | None]]:
        """y_k of the recorded run from step `start` on, in order.

        With each its gradient where it was computed for this: between two steps, the model may be used for
        other things.
        """
        if stage.id in self.stored and self._file is not None:
            return self._loaded(self._file, engine.device, stage, start)
        return recorded_signals(engine, stage, start, free=tells_gradients(stage))

    def _loaded(
        self, file: IO[bytes], device: torch.device, stage: StageTrajectory, start: int
    ) -> Iterator[tuple[Signal, None]]:
        for step in stage.steps[start:]:
            begin, size = self._places[stage.id, step.index]
            file.seek(begin)
            yield signal_of(decoded(*from_bytes(file.read(size))), device), None


@contextmanager
def temporarily_stored(
    stages: Collection[str], folder: Path | None = None
) -> Iterator[RecordedGradients]:
    """Gradients that are forgotten at the end.

    Args:
        stages: ids of the stages whose gradients are stored.
        folder: where the file lies once it is too large for memory; None: the system's folder of
            temporary files.
    """
    with tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder) if folder else None) as file:
        yield RecordedGradients(stages, file)


def worth_storing(trajectory: Trajectory) -> frozenset[str]:
    """Ids of the stages whose recorded gradients are worth storing, and can be.

    Those after the first that cannot be read off the record. None where training changes buffers,
    whose batch statistics a re-run does not show, or where all would take more than `LARGEST` bytes.
    """
    stages = trajectory.stages[1:]
    if any(
        not torch.equal(b, s.first.buffers[n]) for s in stages for n, b in s.last.buffers.items()
    ):
        return frozenset()
    wanted = frozenset(s.id for s in stages if s.steps and not tells_gradients(s))
    return wanted if stored_bytes(trajectory, wanted) <= LARGEST else frozenset()


def stored_bytes(trajectory: Trajectory, stages: Collection[str]) -> int:
    """Bytes that the gradients of some stages take."""
    return sum(
        len(stage.steps) * math.prod(info.shape) * getattr(torch, info.dtype).itemsize
        for stage in trajectory.stages
        for info in stage.parameters
        if stage.id in stages and info.name not in stage.header.frozen
    )
