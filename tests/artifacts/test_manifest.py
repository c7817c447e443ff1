import os
import random
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.manifest import FileEntry, Manifest, digest_path
from auditspec.errors import EvidenceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "b.txt").write_bytes(b"bee")
    (root / "a.txt").write_bytes(b"ay")
    (root / "sub" / "c.txt").write_bytes(b"sea")
    return root


def test_digest_is_the_documented_one(folder: Path) -> None:
    def sha(data: bytes) -> str:
        return digest_bytes(data).removeprefix("sha256:")

    text = (
        f'{{"files":[{{"path":"a.txt","sha256":"{sha(b"ay")}","size":2}},'
        f'{{"path":"b.txt","sha256":"{sha(b"bee")}","size":3}},'
        f'{{"path":"sub/c.txt","sha256":"{sha(b"sea")}","size":3}}]}}'
    )
    assert Manifest.scan(folder).digest == digest_bytes(text.encode())


def test_measured_folder_and_file(folder: Path) -> None:
    measured = digest_path(folder)
    assert (measured.kind, measured.size, measured.files) == ("folder", 8, 3)
    single = digest_path(folder / "a.txt")
    assert (single.kind, single.size, single.files) == ("file", 2, None)
    assert single.digest == digest_bytes(b"ay")


def test_times_modes_caches_and_empty_folders_do_not_count(folder: Path) -> None:
    before = Manifest.scan(folder)
    os.utime(folder / "a.txt", (1, 1))
    (folder / "a.txt").chmod(0o600)
    (folder / "sub" / "__pycache__").mkdir()
    (folder / "sub" / "__pycache__" / "c.pyc").write_bytes(b"x")
    (folder / "empty").mkdir()
    assert Manifest.scan(folder) == before


def test_a_file_called_like_the_cache_counts(folder: Path) -> None:
    before = Manifest.scan(folder).digest
    (folder / "__pycache__").write_bytes(b"x")
    assert Manifest.scan(folder).digest != before


names = st.text("abcdefghij/", min_size=1, max_size=8).filter(
    lambda name: all(name.split("/")) and not name.startswith("/")
)
entries = st.dictionaries(names, st.binary(max_size=4), min_size=1, max_size=6).map(
    lambda files: [FileEntry(p, len(d), digest_bytes(d)) for p, d in files.items()]
)


@given(entries, st.integers())
def test_round_trip_in_any_order(files: list[FileEntry], seed: int) -> None:
    manifest = Manifest(tuple(files))
    random.Random(seed).shuffle(files)
    assert Manifest(tuple(files)).digest == manifest.digest
    assert Manifest.decode(manifest.encode()) == manifest


def test_differences_name_every_kind(folder: Path) -> None:
    before = Manifest.scan(folder)
    (folder / "a.txt").write_bytes(b"AY")
    (folder / "sub" / "c.txt").rename(folder / "renamed.txt")
    differences = before.differences(Manifest.scan(folder))
    assert differences.changed == ("a.txt",)
    assert differences.added == ("renamed.txt",)
    assert differences.removed == ("sub/c.txt",)
    assert str(differences) == "changed a.txt; added renamed.txt; removed sub/c.txt"
    assert not before.differences(before)


def _symlink(root: Path) -> None:
    (root / "bad").symlink_to(root / "a.txt")


def _folder_link(root: Path) -> None:
    (root / "bad").symlink_to(root / "sub")


def _fifo(root: Path) -> None:
    os.mkfifo(root / "bad")


def _socket(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("bad")
    finally:
        os.chdir(here)


def _hidden(root: Path) -> None:
    (root / ".bad").mkdir()


def _backslash(root: Path) -> None:
    (root / "bad\\name").write_bytes(b"")


def _control(root: Path) -> None:
    (root / "bad\nname").write_bytes(b"")


def _right_to_left(root: Path) -> None:
    (root / "bad\u202ename").write_bytes(b"")


def _not_utf8(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/bad\xff")).write_bytes(b"")


def _same_but_for_case(root: Path) -> None:
    (root / "A.TXT").write_bytes(b"")


def _same_folder_but_for_case(root: Path) -> None:
    (root / "SUB").mkdir()
    (root / "SUB" / "bad").write_bytes(b"")


def _same_but_for_composition(root: Path) -> None:
    (root / "caf\u00e9").write_bytes(b"")
    (root / "cafe\u0301").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_symlink, "bad: is a symbolic link"),
        (_folder_link, "bad: is a symbolic link"),
        (_fifo, "bad: is a FIFO"),
        (_socket, "bad: is a socket"),
        (_hidden, r"\.bad: hidden"),
        (_backslash, "backslash or a control character"),
        (_control, "backslash or a control character"),
        (_right_to_left, "backslash or a control character"),
        (_not_utf8, "not UTF-8"),
        (_same_but_for_case, "same name on some file systems"),
        (_same_folder_but_for_case, "same name on some file systems"),
        (_same_but_for_composition, "same name on some file systems"),
    ],
)
def test_refuses_what_is_not_plain(folder: Path, spoil: object, named: str) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(EvidenceError, match=named) as caught:
        Manifest.scan(folder)
    assert caught.value.remedy


def test_refuses_deep_nesting(tmp_path: Path) -> None:
    (tmp_path / "/".join("d" * 64)).mkdir(parents=True)
    assert Manifest.scan(tmp_path).files == ()
    (tmp_path / "/".join("d" * 65)).mkdir()
    with pytest.raises(EvidenceError, match="nested deeper than 64"):
        Manifest.scan(tmp_path)


def test_refuses_a_link_to_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(EvidenceError, match="symbolic link"):
        digest_path(tmp_path / "link")
    with pytest.raises(EvidenceError, match="link: cannot be opened as a folder"):
        Manifest.scan(tmp_path / "link")


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", ".hidden/a", "a/./b", "a\\\\b", ""])
def test_decode_refuses_paths_that_scan_would(path: str) -> None:
    entry = f'{{"path":"{path}","sha256":"{"0" * 64}","size":0}}'
    with pytest.raises(EvidenceError):
        Manifest.decode(f'{{"files":[{entry}]}}'.encode())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "manifest"),
        (b'{"files":[],"files":[]}', "stands twice"),
        (b'{"files":[],"more":1}', "more: Extra"),
        (b'{"files":[{"path":"a","sha256":"00","size":0}]}', "files.0.sha256"),
        (b'{"files":[{"path":"a","sha256":"' + b"0" * 64 + b'","size":-1}]}', "files.0.size"),
        (b'{"files":[{"path":"a","sha256":"' + b"0" * 64 + b'\\n","size":1}]}', "files.0.sha256"),
    ],
)
def test_decode_is_strict(data: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        Manifest.decode(data)


def test_a_path_stands_once() -> None:
    entry = FileEntry("a", 1, digest_bytes(b"a"))
    with pytest.raises(EvidenceError, match="stands twice"):
        Manifest((entry, FileEntry("a", 1, digest_bytes(b"b"))))
    assert Manifest((entry,)).entry("a") == entry
    with pytest.raises(EvidenceError, match="b: not in the manifest"):
        Manifest((entry,)).entry("b")


def test_the_one_hidden_file_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"x")
    (entry,) = Manifest.scan(tmp_path).files
    assert entry.path == ".metadata"
    for name in (".metadata2", "a/.metadata/b"):
        path = tmp_path / "other" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        with pytest.raises(EvidenceError, match="hidden entries are refused"):
            Manifest.scan(tmp_path)
        path.unlink()
    data = Manifest((FileEntry("a/.metadata/b", 1, digest_bytes(b"x")),)).encode()
    with pytest.raises(EvidenceError, match="hidden entries are refused"):
        Manifest.decode(data)
