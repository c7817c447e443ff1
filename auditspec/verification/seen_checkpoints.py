"""A packet's place in a log, the log itself, and the last checkpoint that this verifier saw."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from auditspec.artifacts.files import read_regular, write_atomically
from auditspec.errors import EvidenceError, SignatureError, UsageError
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import PublicKey, keyid
from auditspec.sign.log import (
    Checkpoint,
    Inclusion,
    Log,
    RefusedLogError,
    entry_of,
    read_checkpoint,
)
from auditspec.sign.packet import INCLUSION


@dataclass(frozen=True)
class SeenCheckpoints:
    """Checkpoints that a verifier saw, one file per log key in a folder of the verifier's own."""

    folder: Path

    def last(self, key: PublicKey) -> Checkpoint | None:
        """The last checkpoint of a log; None at the first time.

        Raises:
            UsageError: if the file is damaged.
        """
        path = self._path(key)
        if not os.path.lexists(path):
            return None
        try:
            return read_checkpoint(read_regular(path), key)
        except (RefusedLogError, EvidenceError) as error:
            raise UsageError(
                f"{path}: {error}", "remove it to begin anew, once you know why it is damaged"
            ) from None

    def keep(self, key: PublicKey, text: bytes) -> None:
        """Remember a checkpoint.

        Raises:
            UsageError: if the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(key), text)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def _path(self, key: PublicKey) -> Path:
        return self.folder / f"{keyid(key)}.json"


def require_inclusion(
    files: dict[str, bytes], envelope: Envelope, key: PublicKey | None
) -> tuple[Inclusion, Checkpoint] | None:
    """The packet's place in the log; None where it carries none and no log is asked for.

    Raises:
        SignatureError: at step `log-inclusion`, if it is missing or does not hold.
    """
    if INCLUSION not in files:
        if key is None:
            return None
        raise SignatureError(
            "log-inclusion",
            f"no {INCLUSION}: the packet was never entered into the log",
            "ask the auditor to enter it: auditspec log append",
        )
    try:
        inclusion = Inclusion.decode(files[INCLUSION])
        return inclusion, inclusion.check(entry_of(envelope), key)
    except RefusedLogError as error:
        raise SignatureError("log-inclusion", f"{INCLUSION}: {error}") from None


def require_consistency(
    inclusion: Inclusion,
    carried: Checkpoint,
    folder: Path | None,
    key: PublicKey,
    memory: SeenCheckpoints | None,
) -> str:
    """The log extends every checkpoint seen so far; gives in words what was compared, "" if nothing was.

    Without the log nothing shows that a larger checkpoint extends the one seen before; so it is not
    remembered in that one's place.

    Raises:
        SignatureError: at step `log-consistency`, if it was cut, rolled back, rewritten, or forked.
        UsageError: if the memory is damaged or cannot be written.
    """
    step = "log-consistency"
    last = memory.last(key) if memory else None
    newest, text = carried, inclusion.checkpoint.encode()
    try:
        if folder is not None:
            log = Log.read(folder, key)
            log.require_extends(carried, "the packet's checkpoint")
            if last is not None:
                log.require_extends(last, "the checkpoint seen before")
            newest, text = log.checkpoint, log.text
        elif last is not None and last.size == carried.size and last.root != carried.root:
            raise RefusedLogError("it was forked: two checkpoints of one size have different roots")
    except RefusedLogError as error:
        raise SignatureError(step, f"the log: {error}") from None
    if folder is None and last is not None and last.size != carried.size:
        return ""
    if memory is not None and (last is None or newest.size > last.size):
        memory.keep(key, text)
    return f"{newest.size} entries"
