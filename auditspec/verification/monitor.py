"""Watching a log: that it only ever grew, from one checkpoint to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auditspec.artifacts.files import read_regular
from auditspec.errors import SignatureError
from auditspec.sign.checkpoint import Checkpoint, RefusedLogError
from auditspec.sign.keys import PublicKey
from auditspec.sign.log import Log, read_checkpoint
from auditspec.sign.seen_checkpoints import SeenCheckpoints

STEP = "log-monitor"


@dataclass(frozen=True)
class Watched:
    """A log that extends every checkpoint that was seen of it."""

    log: Log
    before: Checkpoint | None
    """What this monitor saw last; None at the first time."""

    @property
    def new(self) -> tuple[str, ...]:
        """Entries that came since."""
        return self.log.entries[self.before.size if self.before else 0 :]


def watch(
    folder: Path, key: PublicKey, memory: SeenCheckpoints, others: Sequence[Path] = ()
) -> Watched:
    """Check that a log extends the checkpoint seen last, and those that others were shown; remember it.

    Args:
        folder: the log.
        key: the log's.
        memory: where this monitor keeps what it saw.
        others: files with checkpoints of the log that came by other ways.

    Raises:
        SignatureError: if the log, or a checkpoint, does not stand, or the log was cut, rolled back, rewritten, or
            forked. What was seen last stays as it is.
        UsageError: if the memory is damaged or cannot be written.
        EvidenceError: if a file cannot be read.
    """
    shown = [(path, read_regular(path)) for path in others]
    with memory.locked():
        last = memory.last(key)
        try:
            log = Log.read(folder, key)
            if last is not None:
                log.require_extends(last, "the checkpoint seen before")
            for path, text in shown:
                log.require_extends(read_checkpoint(text, key), str(path))
        except RefusedLogError as error:
            raise SignatureError(STEP, f"{folder}: {error}") from None
        memory.keep(key, log.checkpoint)
    return Watched(log, last)
