"""Where a record goes: a folder; or a store, into which it is put stage by stage.

A run writes every part at its moment, re-runs its first steps from them, and goes on from them after it was killed: all of
that is done in a folder here, in auditspec's cache. A stage's files change no more once it has ended; then they are put
into the store, each whole, while the next stage trains, and `record.json` after them. The manifest comes last.
"""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from auditspec.artifacts.fetch import fetch
from auditspec.artifacts.inspect import OWN_MANIFEST
from auditspec.artifacts.stores import Store
from auditspec.errors import RecordError, UsageError
from auditspec.record.format import HEADER
from auditspec.urls import as_path, is_url, last_part
from auditspec.user_folders import cache_folder


class Destination:
    """A record's place, and the folder in which it is written.

    Args:
        place: a folder, or a URL.
        resume: whether to go on with what is there: here first, else in the store.

    Raises:
        UsageError: if the store cannot be read.
        RecordError: if a record is in the store and `resume` is false.
    """

    def __init__(self, place: str | Path, *, resume: bool) -> None:
        place = as_path(place)
        self._store = Store(place) if is_url(place) else None
        self.folder = Path(place)
        self._uploads = ThreadPoolExecutor(1, "auditspec-upload")
        self._jobs: list[Future[None]] = []
        self._put: set[Path] = set()
        if self._store is not None:
            url = self._store.url
            around = cache_folder() / "records" / hashlib.sha256(url.encode()).hexdigest()[:32]
            self.folder = around / last_part(url)
            self._take_up(self._store, around, resume)

    def stage_ended(self, folder: Path) -> None:
        """Put a stage's files into the store, while training goes on; what fails is tried again at the end."""
        if self._store is not None:
            self._jobs.append(self._uploads.submit(self._put_stage, self._store, folder))

    def finish(self) -> None:
        """Put what the store lacks, the manifest last; what was written here is removed.

        Raises:
            RecordError: if the store does not take it; the record lies here.
        """
        self._uploads.shutdown(wait=True)
        if self._store is None:
            return
        try:
            self._finish(self._store)
        except UsageError as error:
            raise RecordError(
                f"{error.message}; the whole record lies in {self.folder}",
                "copy it from there, or record with resume=True once the store can be written",
            ) from None
        shutil.rmtree(self.folder.parent)

    def stop(self) -> None:
        """Wait for what is being put."""
        self._uploads.shutdown(wait=True)

    def _take_up(self, store: Store, around: Path, resume: bool) -> None:
        there = {file.path for file in store.files()}
        if there and not resume:
            raise RecordError(
                f"{store.url}: something is there already",
                "choose another place, delete it, or pass resume=True to go on with it",
            )
        if HEADER in there and not (self.folder / HEADER).exists():
            shutil.copytree(fetch(store.url, around / "fetched"), self.folder)
            shutil.rmtree(around / "fetched")
            self._put = {
                self.folder / path for path in there if "/" in path
            }  # of stages, which change no more

    def _put_stage(self, store: Store, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            self._put_file(store, path)
        store.put(self.folder / HEADER, HEADER)

    def _finish(self, store: Store) -> None:
        for job in self._jobs:
            if (error := job.exception()) is not None and not isinstance(error, UsageError):
                raise error
        last = {self.folder / HEADER: 1, self.folder / OWN_MANIFEST: 2}
        files = (path for path in self.folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: (last.get(path, 0), path)):
            self._put_file(store, path)

    def _put_file(self, store: Store, path: Path) -> None:
        if path not in self._put:
            store.put(path, path.relative_to(self.folder).as_posix())
            if path.parent != self.folder:
                self._put.add(path)
