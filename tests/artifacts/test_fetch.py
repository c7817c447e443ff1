"""Whatever a store gives ends in a copy with the digest of the same bytes here, or in an error that leaves none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from auditspec.artifacts.fetch import Most, fetch
from auditspec.artifacts.manifest import digest_path
from auditspec.artifacts.stores import CHUNK, Store, StoredFile
from auditspec.errors import EvidenceError, UsageError

FILES = {
    "a.txt": b"one",
    "deep/er/b.bin": bytes(range(256)) * 4096,
    "empty": b"",
    "big": b"0123456789abcdef" * (CHUNK // 8),
}


def written(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def put(system: fsspec.AbstractFileSystem, files: dict[str, bytes] = FILES) -> str:
    for name, data in files.items():
        system.pipe_file(f"/bucket/run/{name}", data)
    return "memory://bucket/run"


def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every file that is read from now on, and from where."""
    seen: list[tuple[str, int]] = []
    read = Store.read

    def reading(self: Store, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        seen.append((file.path, start))
        return read(self, file, start)

    monkeypatch.setattr(Store, "read", reading)
    return seen


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Reading ends with an error after so many chunks of a file."""
    read = Store.read

    def stops(self: Store, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        for number, chunk in enumerate(read(self, file, start)):
            if number == after:
                raise UsageError("the line is dead")
            yield chunk

    monkeypatch.setattr(Store, "read", stops)


def test_a_folder_has_the_digest_of_the_same_bytes_here(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    here = digest_path(written(tmp_path / "run"))
    for url in (put(memory), (tmp_path / "run").as_uri()):
        copy = fetch(url, tmp_path / url.partition(":")[0])
        assert copy.name == "run" and copy.parent.name == here.digest.removeprefix("sha256:")
        assert digest_path(copy) == here


def test_a_file_keeps_its_name_and_digest(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    put(memory)
    copy = fetch("memory://bucket/run/deep/er/b.bin", tmp_path)
    assert copy.name == "b.bin" and copy.read_bytes() == FILES["deep/er/b.bin"]
    assert copy.parent.name == digest_path(copy).digest.removeprefix("sha256:")


def test_caches_of_python_count_no_more_than_here(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    url = put(memory, {"train.py": b"x = 1\n", "__pycache__/train.pyc": b"junk"})
    written(tmp_path / "code", {"train.py": b"x = 1\n", "__pycache__/train.pyc": b"other"})
    assert digest_path(fetch(url, tmp_path / "c")).digest == digest_path(tmp_path / "code").digest


def test_pinned_bytes_are_asked_for_once(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(memory)
    first = fetch(url, tmp_path)
    digest = digest_path(first).digest
    memory.pipe_file("/bucket/run/a.txt", b"two")
    seen = asked(monkeypatch)
    assert fetch(url, tmp_path, digest) == first
    assert seen == []
    second = fetch(url, tmp_path)
    assert (second / "a.txt").read_bytes() == b"two" and second != first
    assert (first / "a.txt").read_bytes() == b"one"


def test_an_interrupted_download_is_taken_up_again_and_never_used(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, here = put(memory), digest_path(written(tmp_path / "run")).digest
    with monkeypatch.context() as broken:
        stopping(broken, after=1)
        with pytest.raises(UsageError, match="the line is dead"):
            fetch(url, tmp_path / "c", here)
    assert [p.name for p in (tmp_path / "c").iterdir() if not p.name.startswith("partial-")] == []
    seen = asked(monkeypatch)
    copy = fetch(url, tmp_path / "c", here)
    assert digest_path(copy).digest == here
    assert ("big", CHUNK) in seen


def test_what_is_written_again_meanwhile_is_not_put_together(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(memory, {"model.bin": b"a" * CHUNK * 2})
    read = Store.read

    def swaps(self: Store, file: StoredFile, start: int = 0) -> Iterator[bytes]:
        for chunk in read(self, file, start):
            yield chunk
            memory.pipe_file("/bucket/run/model.bin", b"b" * CHUNK * 2)

    monkeypatch.setattr(Store, "read", swaps)
    with pytest.raises(UsageError, match="changed while it was read"):
        fetch(url, tmp_path)
    monkeypatch.undo()
    assert (fetch(url, tmp_path) / "model.bin").read_bytes() == b"b" * CHUNK * 2


@pytest.mark.parametrize("given", [b"four!", b"fo"])
def test_more_or_less_than_was_listed_is_refused(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, given: bytes
) -> None:
    url = put(memory, {"x": b"four"})
    monkeypatch.setattr(Store, "read", lambda self, file, start=0: iter([given]))
    with pytest.raises(UsageError, match="not of the 4 bytes"):
        fetch(url, tmp_path)


def test_too_much_is_refused_before_anything_is_read(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = put(memory), asked(monkeypatch)
    for most in (Most(files=3), Most(size=sum(map(len, FILES.values())) - 1)):
        with pytest.raises(UsageError, match=r"more than 3 files|bytes, and"):
            fetch(url, tmp_path, most=most)
    assert seen == []
    assert fetch(url, tmp_path, most=Most(4, sum(map(len, FILES.values())))).exists()


@pytest.mark.parametrize("name", [".hidden", "a/.b/c", "..\\up", "a\n"])
def test_names_that_no_folder_may_have_here_are_refused(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, name: str
) -> None:
    url = put(memory, {"good": b"1", name: b"2"})
    with pytest.raises(EvidenceError):
        fetch(url, tmp_path / "c")
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_links_of_this_machine_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/x").symlink_to(tmp_path / "secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    for place in ("run", "link"):
        with pytest.raises(EvidenceError, match="is a link"):
            fetch((tmp_path / place).as_uri(), tmp_path / "c")


def test_where_nothing_is_the_copy_is_missing(tmp_path: Path) -> None:
    assert not fetch("memory://bucket/none", tmp_path).exists()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host/file", "a store is one of"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("simplecache::s3://bucket/x", "a store is one of"),
        ("s3://bucket::file:///x", "credentials and chains"),
        ("s3://bucket", "names a bucket"),
        ("file://host/x", "file:///"),
        ("file:///home/a/.ssh/id", "plain, visible names"),
        ("s3://bucket/a/../b", "plain, visible names"),
        ("memory://", "plain, visible names"),
    ],
)
def test_what_is_no_place_in_a_store_is_refused(tmp_path: Path, url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        fetch(url, tmp_path)


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fsspec.url_to_fs", lambda *_, **__: (_ for _ in ()).throw(ImportError("no s3fs"))
    )
    with pytest.raises(UsageError) as caught:
        fetch("s3://bucket/x", tmp_path)
    assert caught.value.remedy == "pip install 'auditspec[s3]'"


def test_what_a_store_says_is_an_error_of_ours(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(memory)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "info", denied)
    with pytest.raises(UsageError, match=r"memory://bucket/run: cannot be listed .*Access Denied"):
        fetch(url, tmp_path)
