"""Re-run a window of a record, and judge whether it holds: as record-fidelity will."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from auditspec.attempt import reason_of
from auditspec.engine.execution import execution
from auditspec.engine.interface import Engine, StepGradient
from auditspec.errors import EvidenceError
from auditspec.record.deviation import (
    LOSSES,
    MISSED_SHARE,
    Deviation,
    deviation_of,
    first_other_loss,
    threshold_of,
)
from auditspec.record.format import RecordHeader
from auditspec.record.numerics import numerics
from auditspec.record.trajectory import StageTrajectory


@dataclass(frozen=True)
class Window:
    """A stretch between two neighbouring recorded states."""

    stage: StageTrajectory
    start: int
    stop: int

    @property
    def place(self) -> str:
        """For messages."""
        last = self.stop - 1
        steps = f"step {last}" if last == self.start else f"steps {self.start} to {last}"
        return f"stage '{self.stage.id}', {steps}"


@dataclass(frozen=True)
class Landing:
    """Where the re-run of a window ended."""

    deviation: Deviation | None
    """None where it could not be re-run."""
    problem: str = ""
    """Why the window does not hold; empty where it does."""

    @property
    def holds(self) -> bool:
        """Whether record-fidelity would accept the window."""
        return not self.problem


@contextmanager
def as_recorded(header: RecordHeader) -> Iterator[None]:
    """Threads, determinism, and switches of rounding as they stood when a record was begun."""
    with numerics(header.numerics), execution(header.threads, deterministic=header.deterministic):
        yield


def land(rerun: Engine, window: Window) -> Landing:
    """Re-run a window from its recorded state, and compare with the one that ends it.

    Raises:
        EvidenceError: if the record is damaged.
        MemoryError: if there is not enough; likewise torch.OutOfMemoryError.
    """
    stage, start, stop = window.stage, window.start, window.stop
    losses: dict[int, float] = {}

    def note(step_gradient: StepGradient) -> None:
        losses[step_gradient.step.index] = step_gradient.loss

    begin, wanted = stage.state(start), stage.state(stop)
    try:
        reached = rerun.run(stage, begin, start, stop, visit=note)
    except EvidenceError as error:
        return Landing(None, error.message)
    except (Exception, SystemExit) as error:  # whatever the training code raises
        if blameless(error):
            raise
        return Landing(None, f"it cannot be run again: {reason_of(error)}")
    deviation = deviation_of(begin, reached, wanted, stop - start)
    if deviation.missed > MISSED_SHARE:
        share = min(deviation.missed, 1)
        return Landing(deviation, f"its re-run misses {share:.0%} of what it moved the weights by")
    if deviation.deviation > threshold_of(stage.parameters):
        return Landing(deviation, f"its re-run ends {deviation.deviation:.2g} off")
    other = first_other_loss(stage, losses, LOSSES if deviation.conclusive else MISSED_SHARE)
    if other is None:
        return Landing(deviation)
    recorded, again = stage.steps[other].loss, losses[other]
    return Landing(
        deviation, f"the loss of step {other} was {recorded:.6g}; its re-run gives {again:.6g}"
    )


def blameless(error: BaseException) -> bool:
    """Whether an error is no fault of the training code: a device that is full or gone."""
    device = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError, device))
