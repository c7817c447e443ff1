"""A record that is being written: what stands in it so far, and with what its next stage begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from auditspec.errors import RecordError
from auditspec.record.extension import BoundExtend
from auditspec.record.format import RecordHeader
from auditspec.record.state import State
from auditspec.recorder.committed import CommittedStage
from auditspec.recorder.declaration import Before
from auditspec.recorder.destination import Destination
from auditspec.recorder.files_read import TrainingReads
from auditspec.recorder.fully_shard import put_away
from auditspec.recorder.joins import ModelChange
from auditspec.recorder.ranks import Ranks
from auditspec.recorder.reproduction import Reproduction
from auditspec.recorder.states import States
from auditspec.recorder.writer import finish_manifest, write_header
from auditspec.recorder.writer_thread import Background


@dataclass
class OpenRecord:
    """A record and its run, between two stages or inside one.

    The arguments of `Recorder`, and what they became.
    """

    folder: Path
    destination: Destination | None
    """Of the rank that writes."""
    header: RecordHeader
    ranks: Ranks
    model: nn.Module
    wrapper: nn.Module
    """What `run.loss` calls."""
    factory: Callable[[], nn.Module]
    load_batch: Callable[[Any, Any], Any] | None
    reads: TrainingReads
    compiled: bool
    """Whether the model was, as it came."""
    self_check: bool
    background: Background = field(default_factory=Background)
    data: set[Path] = field(default_factory=set)
    """All data sets so far."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Of those that stages name."""
    extensions: list[BoundExtend] = field(default_factory=list)
    change: ModelChange | None = None
    """Of the model, since the last stage."""
    last: State | None = None
    """With which the last stage ended."""
    next_stage: int = 0
    stage: str | None = None
    """Id of the stage that is open."""
    committed: CommittedStage | None = None
    """What was committed to for the next stage."""
    reproduction: Reproduction | None = None
    """Where the run is made again: sees its steps."""

    def states(self, optimizer: Optimizer) -> States:
        """States of the run between two steps."""
        put_away(self.model)
        return States(self.ranks, self.model, optimizer, self.folder)

    def before(self, states: States) -> Before:
        """What the next stage begins with."""
        return Before(self.header, self.next_stage, self.last, self.change, states)

    def save(self, **changes: Any) -> None:
        """Change the header, here and in the folder."""
        self.header = self.header.model_copy(update=changes)
        self.background.submit(partial(write_header, self.folder, self.header))

    def change_stage(self, index: int, **changes: Any) -> None:
        """Change the header of a stage."""
        stages = list(self.header.stages)
        stages[index] = stages[index].model_copy(update=changes)
        self.save(stages=tuple(stages))

    def finish(self) -> None:
        """Mark the record complete, and write the manifest of its files.

        Raises:
            RecordError: if a resumed record has stages that were not entered again.
            OSError: if the disk is full.
        """
        if self.next_stage != len(self.header.stages):
            missing = self.header.stages[self.next_stage].id
            raise RecordError(
                f"stage '{missing}' of the record was not run again", "resume with every stage"
            )
        if not self.header.complete:
            self.save(complete=True, reads=self.reads.files(self.data))
        self.background.wait()
        finish_manifest(self.folder)
        if self.destination is not None:
            self.destination.finish()
