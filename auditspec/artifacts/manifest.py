"""What a folder holds: every file's path, size, and digest, and one digest over them all.

A folder's digest is the sha256 of the canonical JSON (RFC 8785) of

    {"files": [{"path": "a/b.txt", "sha256": "<64 hex digits>", "size": 12}, ...]}

with `path` relative to the folder, '/' between parts, sorted by Unicode code point. Names, contents,
and nothing else count: not times, owners, permissions, or empty folders. `__pycache__` folders are
left out; they hold what Python derived from the sources, and auditspec never reads them.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes, digest_file
from auditspec.errors import EvidenceError

IGNORED_FOLDER = "__pycache__"
DISTRIBUTED = ".metadata"
"""The one hidden file that is allowed: by it, a folder of torch.distributed.checkpoint is told."""
MAX_DEPTH = 64
HASHING_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file of a folder."""

    path: str
    """Relative to the folder, '/' between parts."""
    size: int
    """Bytes."""
    digest: str


@dataclass(frozen=True)
class Differences:
    """How one manifest differs from another, as sorted paths."""

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def __str__(self) -> str:
        groups = {"changed": self.changed, "added": self.added, "removed": self.removed}
        return "; ".join(f"{word} {_shorten(paths)}" for word, paths in groups.items() if paths)


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, sorted by path.

    `Manifest.decode(manifest.encode()) == manifest`, in whatever order the files were given.

    Raises:
        EvidenceError: if two files have the same path, or paths that differ only in letter case or
            Unicode form, which some file systems cannot keep apart.
    """

    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files)))
        seen: dict[str, str] = {}
        for entry in self.files:
            for path in _with_parents(entry.path):
                other = seen.setdefault(_folded(path), path)
                if other != path:
                    raise EvidenceError(
                        f"{other!r} and {path!r} are the same name on some file systems",
                        "rename one of them",
                    )
        if len({entry.path for entry in self.files}) != len(self.files):
            raise EvidenceError("a path stands twice in the manifest")

    @classmethod
    def scan(cls, root: Path) -> Manifest:
        """Read every file below `root`, following no link.

        Raises:
            EvidenceError: if the folder is missing or a link, or holds anything that is not a plain
                file or folder with a plain, visible name.
        """
        paths = list(_walk(root))
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            digests = pool.map(lambda path: digest_file(root / path), paths)
            return cls(
                tuple(
                    FileEntry(path, size, digest)
                    for path, (digest, size) in zip(paths, digests, strict=True)
                )
            )

    @classmethod
    def decode(cls, data: bytes, what: str = "manifest") -> Manifest:
        """Read a manifest from its JSON; `what` names it in errors.

        Raises:
            EvidenceError: if it is not strict JSON in the shape that `encode` writes, or lists a path
                that `scan` would refuse (absolute, with '..', hidden, and so on).
        """
        stored = strict_json.load(_StoredManifest, data, what)
        for file in stored.files:
            *folders, last = file.path.split("/")
            for part in folders:
                check_name(part, file.path, folder=True)
            check_name(last, file.path)
        return cls(tuple(FileEntry(f.path, f.size, f"sha256:{f.sha256}") for f in stored.files))

    def encode(self) -> bytes:
        """The canonical JSON whose sha256 is the folder's digest."""
        return canonical_json(
            {
                "files": [
                    {"path": f.path, "size": f.size, "sha256": f.digest.removeprefix("sha256:")}
                    for f in self.files
                ]
            }
        )

    @cached_property
    def digest(self) -> str:
        """The folder's digest."""
        return digest_bytes(self.encode())

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def entry(self, path: str) -> FileEntry:
        """The entry of one file.

        Raises:
            EvidenceError: if the manifest does not list it.
        """
        try:
            return self._by_path[path]
        except KeyError:
            raise EvidenceError(
                f"{path}: not in the manifest", "restore the file, or pin the folder without it"
            ) from None

    @cached_property
    def _by_path(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.files}

    def without(self, path: str) -> Manifest:
        """The same manifest less one file."""
        return Manifest(tuple(entry for entry in self.files if entry.path != path))

    def differences(self, other: Manifest) -> Differences:
        """What would have to happen to these files to make them `other`'s."""
        mine = {entry.path: entry.digest for entry in self.files}
        theirs = {entry.path: entry.digest for entry in other.files}
        return Differences(
            changed=tuple(sorted(p for p in mine.keys() & theirs.keys() if mine[p] != theirs[p])),
            added=tuple(sorted(theirs.keys() - mine.keys())),
            removed=tuple(sorted(mine.keys() - theirs.keys())),
        )


@dataclass(frozen=True)
class Measured:
    """What a path holds; `manifest` is None for a single file."""

    kind: Literal["file", "folder"]
    digest: str
    size: int
    """Bytes."""
    manifest: Manifest | None = None

    @property
    def files(self) -> int | None:
        """How many files a folder holds; None for a single file."""
        return None if self.manifest is None else len(self.manifest.files)


def digest_path(path: Path) -> Measured:
    """Measure a file (sha256 of its bytes) or a folder (sha256 of its manifest).

    Raises:
        EvidenceError: if it is missing, a link, neither file nor folder, or unsafe to read.
    """
    if path.is_dir() and not path.is_symlink():
        manifest = Manifest.scan(path)
        return Measured("folder", manifest.digest, manifest.size, manifest)
    digest, size = digest_file(path)
    return Measured("file", digest, size)


# --- the stored form ----------------------------------------------------------------------------


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _StoredFile(_Stored):
    path: Annotated[str, Field(min_length=1)]
    size: Annotated[int, Field(ge=0, lt=2**53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _StoredManifest(_Stored):
    files: list[_StoredFile]


# --- walking ------------------------------------------------------------------------------------


def _walk(root: Path, below: str = "") -> Iterator[str]:
    """Yield the relative path of every file, refusing whatever is not a plain file or folder."""
    folder = root / below
    if below.count("/") >= MAX_DEPTH:
        raise EvidenceError(f"{folder}: nested deeper than {MAX_DEPTH} folders", "flatten it")
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EvidenceError(
            f"{folder}: cannot be opened as a folder ({reason})",
            "name a real folder, not a link to one",
        ) from None
    try:
        with os.scandir(descriptor) as entries:
            listed = sorted((e.name, e.stat(follow_symlinks=False).st_mode) for e in entries)
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be listed ({error.strerror})") from None
    finally:
        os.close(descriptor)
    for name, mode in listed:
        path = f"{below}/{name}" if below else name
        if stat.S_ISDIR(mode) and name == IGNORED_FOLDER:
            continue
        check_name(name, str(root / path), folder=stat.S_ISDIR(mode))
        if stat.S_ISDIR(mode):
            yield from _walk(root, path)
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise EvidenceError(
                f"{root / path}: is {_KINDS.get(stat.S_IFMT(mode), 'not a file')}",
                "evidence is plain files and folders; remove it, or put a copy in its place",
            )


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def check_name(name: str, path: str, *, folder: bool = False) -> None:
    """Refuse a file or folder name that hides, or that another system reads differently.

    Raises:
        EvidenceError: for empty and hidden names, backslashes, control or invisible characters, and names
            that are not UTF-8.
    """
    shown = ascii(path)[1:-1]
    if not name:
        raise EvidenceError(f"{shown}: empty name in a path", "write it as a/b")
    if name.startswith(".") and (folder or name != DISTRIBUTED):
        raise EvidenceError(f"{shown}: hidden entries are refused", "remove it, or rename it")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise EvidenceError(f"{shown}: its name is not UTF-8", "rename it") from None
    if "\\" in name or not name.isprintable():
        raise EvidenceError(
            f"{shown}: its name holds a backslash or a control character", "rename it"
        )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _with_parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[: end + 1]) for end in range(len(parts)))


def _shorten(paths: tuple[str, ...], limit: int = 5) -> str:
    rest = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(paths[:limit]) + rest
