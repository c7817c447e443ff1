"""Checkpoints that a verifier, a witness, or a log's keeper saw last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from auditspec.artifacts.files import read_regular, write_atomically
from auditspec.artifacts.locks import alone_in
from auditspec.errors import EvidenceError, UsageError
from auditspec.sign.checkpoint import Checkpoint, RefusedLogError
from auditspec.sign.keys import PublicKey, keyid


@dataclass(frozen=True)
class SeenCheckpoints:
    """The last checkpoint seen of each log, one file per log key in a folder of the user's own."""

    folder: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process compares with what was seen, or changes it.

        Raises:
            UsageError: if the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written ({error.strerror})") from None
        with alone_in(self.folder):
            yield

    def last(self, key: PublicKey) -> Checkpoint | None:
        """The last checkpoint of a log; None at the first time.

        Raises:
            UsageError: if the file is damaged.
        """
        path = self._path(key)
        if not os.path.lexists(path):
            return None
        try:
            checkpoint = Checkpoint.decode(read_regular(path))
            checkpoint.require_signed(key)
        except (RefusedLogError, EvidenceError) as error:
            raise UsageError(
                f"{path}: {error}", "remove it to begin anew, once you know why it is damaged"
            ) from None
        return checkpoint

    def keep(self, key: PublicKey, checkpoint: Checkpoint) -> None:
        """Remember a checkpoint, under the lock.

        Raises:
            UsageError: if the folder cannot be written.
        """
        try:
            write_atomically(self._path(key), checkpoint.encode())
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written ({error.strerror})") from None

    def _path(self, key: PublicKey) -> Path:
        return self.folder / keyid(key)
