"""Fetch what lies at a URL to a folder of this machine, by its digest.

    FOLDER/<64 hex digits>/NAME     whole, and once written, never changed
    FOLDER/partial-<of the URL>/    what came of it so far: taken up again, and never used

Everything after that reads the copy as it reads any local file: pinned, hashed, and used from the bytes that were hashed.
A store that answers otherwise the next time changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from auditspec.artifacts.locks import locked
from auditspec.artifacts.manifest import (
    HASHING_THREADS,
    IGNORED_FOLDER,
    FileEntry,
    Manifest,
    check_name,
)
from auditspec.artifacts.scratch import remove
from auditspec.artifacts.stores import CHUNK, Store, StoredFile
from auditspec.errors import UsageError
from auditspec.urls import last_part


@dataclass(frozen=True)
class Most:
    """How much is fetched from one URL."""

    files: int = 100_000
    size: int | None = None
    """Bytes of all of them; None: what the disk has room for."""


def fetch(url: str, folder: Path, expected: str | None = None, most: Most = Most()) -> Path:
    """The local copy of a file or folder in a store; a path at which nothing lies where there is nothing.

    Args:
        url: where it lies.
        folder: of all that was fetched.
        expected: the digest of what is wanted: bytes that were fetched before are not asked for again.
        most: what is fetched at most.

    Raises:
        UsageError: if the store cannot be asked, changes what it gives, or holds too much.
        EvidenceError: if a name would not be taken from a local folder either.
    """
    name = last_part(url)
    if expected is not None and (kept := folder / _hex(expected) / name).exists():
        return kept
    store = Store(url)
    files = _wanted(store, most)
    partial = folder / f"partial-{hashlib.sha256(url.encode()).hexdigest()[:32]}"
    try:
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_room(url, files, partial, most)
        with locked(partial):
            return _fetched(store, files, partial, name) if files else partial / "nothing" / name
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None


def _wanted(store: Store, most: Most) -> list[StoredFile]:
    """The files that a folder's manifest lists.

    Raises:
        UsageError: if there are too many.
        EvidenceError: for names that a manifest refuses.
    """
    files = [f for f in store.files() if IGNORED_FOLDER not in f.path.split("/")[:-1]]
    if len(files) > most.files:
        raise UsageError(f"{store.url}: holds more than {most.files} files", "name less of it")
    for file in files:
        *folders, last = file.path.split("/")
        for part in folders:
            check_name(part, file.path, folder=True)
        if file.path:
            check_name(last, file.path)
    return files


def _require_room(url: str, files: list[StoredFile], partial: Path, most: Most) -> None:
    there = sum(entry.stat().st_size for entry in partial.iterdir() if entry.is_file())
    room = shutil.disk_usage(partial).free + there if most.size is None else most.size
    size = sum(file.size for file in files)
    if size > room:
        raise UsageError(
            f"{url}: holds {size} bytes, and {room} are the most that may be fetched",
            "free space where AUDITSPEC_CACHE lies, or name less of it",
        )


def _fetched(store: Store, files: list[StoredFile], partial: Path, name: str) -> Path:
    """Fetch every file, and put all of them in their place at one moment."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        entries = list(pool.map(lambda file: _fetch(store, file, partial), files))
    single = files[0].path == ""
    manifest = Manifest(tuple(entries))
    place = partial.parent / _hex(entries[0].digest if single else manifest.digest)
    whole = partial / "whole"
    remove(whole)
    for file in files:
        target = whole / name / file.path if file.path else whole / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(_part(partial, file))
        target.chmod(0o400)
    place.mkdir(mode=0o700, exist_ok=True)
    if not (place / name).exists():  # what stands there is of this digest
        (whole / name).rename(place / name)
    remove(whole)
    for part in partial.iterdir():
        part.unlink()
    return place / name


def _fetch(store: Store, file: StoredFile, partial: Path) -> FileEntry:
    """Fetch what is missing of a file, and hash all of it.

    Raises:
        UsageError: if it is not what was listed.
    """
    path, hashed = _part(partial, file), hashlib.sha256()
    whole = path.exists() and path.stat().st_size == file.size
    with path.open("rb" if whole else "a+b") as part:
        part.seek(0)
        while chunk := part.read(CHUNK):
            hashed.update(chunk)
        if not whole:
            for chunk in store.read(file, part.tell()):
                if part.tell() + len(chunk) > file.size:
                    break
                part.write(chunk)
                hashed.update(chunk)
            part.flush()
            os.fsync(part.fileno())
            store.require_unchanged(file)
        if part.tell() != file.size:
            raise UsageError(
                f"{store.url}: {file.path or 'it'} is not of the {file.size} bytes that were listed",
                "try again",
            )
    return FileEntry(file.path, file.size, f"sha256:{hashed.hexdigest()}")


def _part(partial: Path, file: StoredFile) -> Path:
    """Where one version of a file is put together: no name of the store's becomes a path before all are checked."""
    return partial / hashlib.sha256(f"{file.path}\n{file.version}".encode()).hexdigest()


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
