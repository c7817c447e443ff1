"""What lies at a URL in a store, through fsspec: an object, or every object below a prefix.

Whoever uses it judges names and bytes; nothing is remembered between two questions. The libraries of a store read
credentials where they always do (environment, files, the machine's role): none pass through here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from auditspec.errors import AuditspecError, EvidenceError, UsageError
from auditspec.urls import fault

CHUNK = 4 * 2**20
"""Bytes of a file that are in memory at once."""
_EXTRAS = ("s3", "gs")
"""Stores whose library is an extra of the same name."""
_VERSION = ("ETag", "etag", "generation", "mtime", "ino", "created", "size")
"""What stores say of an object that changes when its bytes do."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a store, as it was listed."""

    path: str
    """Relative to the URL, '/' between parts; empty where the URL is the file's own."""
    size: int
    """Bytes."""
    version: str
    """Another one where the file was written again."""


class Store:
    """One place in a store.

    Raises:
        UsageError: if the URL is none of a store that is used, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        if why := fault(url):
            raise UsageError(f"{url}: {why}", "write s3://bucket/folder/file, for example")
        import fsspec

        self.url = url.rstrip("/")
        self._scheme = scheme = url.partition("://")[0]
        try:
            self._system, root = fsspec.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True
            )
        except ImportError:
            extra = f"auditspec[{scheme}]" if scheme in _EXTRAS else "fsspec"
            raise UsageError(
                f"{url}: the library for {scheme}:// is not installed", f"pip install '{extra}'"
            ) from None
        self._root = str(root).rstrip("/")

    def files(self) -> tuple[StoredFile, ...]:
        """Every file here, sorted by path; none where there is nothing.

        Raises:
            EvidenceError: if a folder of this machine holds links or special files.
            UsageError: if the store cannot be asked.
        """
        with self._telling("listed"):
            self._system.invalidate_cache()
            try:
                own = self._system.info(self._root)
            except FileNotFoundError:
                return ()
            if own["type"] != "directory":
                return (self._listed(own, ""),)
            found: dict[str, dict[str, Any]] = self._system.find(self._root, detail=True)
            start = f"{own['name'].rstrip('/')}/"
            relative = {path.removeprefix(start): info for path, info in found.items()}
            return tuple(
                self._listed(info, path)
                for path, info in sorted(relative.items())
                if path and not path.endswith("/")  # a console's mark of an empty folder
            )

    def read(self, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        """The file's bytes from a position on, in chunks.

        Raises:
            UsageError: if it cannot be read.
        """
        with (
            self._telling("read"),
            self._system.open(self._path(file.path), "rb", cache_type="none") as stream,
        ):
            stream.seek(start)
            while chunk := stream.read(CHUNK):
                yield chunk

    def require_unchanged(self, file: StoredFile) -> None:
        """Hold a file against what was listed.

        Raises:
            UsageError: if it was written again, or is gone.
        """
        with self._telling("read"):
            now = self._listed(self._system.info(self._path(file.path)), file.path)
        if now != file:
            raise UsageError(f"{self.url}: {file.path} was changed while it was read", "try again")

    def put(self, source: Path, path: str = "") -> None:
        """Write a file, which appears whole or not at all, over whatever has its name.

        Raises:
            UsageError: if it cannot be written.
        """
        target = self._path(path)
        with self._telling("written"):
            if self._scheme == "file":  # stores do so themselves
                self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._system.put_file(str(source), f"{target}.part")
                self._system.mv(f"{target}.part", target)
            else:
                self._system.put_file(str(source), target)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there.

        Raises:
            UsageError: if it may not be removed.
        """
        with self._telling("removed from"):
            try:
                self._system.rm_file(self._path(path))
            except FileNotFoundError:
                return

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _listed(self, info: dict[str, Any], path: str) -> StoredFile:
        if info.get("islink") or info["type"] != "file":
            raise EvidenceError(
                f"{self.url}: {path or 'it'} is a link or no plain file",
                "evidence is plain files and folders; put a copy in its place",
            )
        said = (info.get(key) for key in _VERSION)
        version = " ".join(str(s.timestamp() if isinstance(s, datetime) else s) for s in said)
        return StoredFile(path, int(info["size"]), version)

    @contextmanager
    def _telling(self, done: str) -> Iterator[None]:
        """A store's own error as ours; its libraries share no root of theirs."""
        try:
            yield
        except AuditspecError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UsageError(
                f"{self.url}: cannot be {done} ({why})",
                "check the address, and what the store's own tool says of it with the same credentials",
            ) from None
