import os
from pathlib import Path

import pytest
from said import said

from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.inspect import inspect
from auditspec.artifacts.manifest import Manifest, digest_path


def test_states_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"data")
    good, other = digest_bytes(b"data"), digest_bytes(b"other")
    verified = inspect("x", path, "data/x.bin", good, "spec.yaml")
    assert (verified.state, verified.found, verified.size, verified.files) == (
        "verified",
        good,
        4,
        None,
    )
    assert (verified.path, verified.pinned_in, verified.notes) == ("data/x.bin", "spec.yaml", ())
    declared = inspect("x", path, "x.bin", None, None)
    assert (declared.state, declared.found) == ("declared", good)
    changed = inspect("x", path, "x.bin", other, "spec.lock.json")
    assert (changed.state, changed.expected, changed.found) == ("mismatched", other, good)
    assert changed.notes
    missing = inspect("x", tmp_path / "none", "none", good, "spec.yaml")
    assert (missing.state, missing.kind, missing.found) == ("missing", "file", None)
    assert inspect("x", tmp_path / "none", "none/", None, None).kind == "folder"


@pytest.mark.parametrize("expected", [None, digest_bytes(b"x")])
def test_unsafe_files_are_mismatched(tmp_path: Path, expected: str | None) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, words in [("link", "link"), ("dangling", "link"), ("fifo", "regular file")]:
        evidence = inspect("x", tmp_path / name, f"shown/{name}", expected, None)
        assert (evidence.state, evidence.found) == ("mismatched", None)
        assert words in said(evidence.notes)
        assert str(tmp_path) not in said(evidence.notes)


def test_a_record_names_what_changed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "manifest.json").write_bytes(Manifest.scan(tmp_path).encode())
    pinned = digest_path(tmp_path).digest
    assert inspect("record", tmp_path, "record/", pinned, "spec.yaml").state == "verified"
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").unlink()
    (tmp_path / "d").write_bytes(b"d")
    evidence = inspect("record", tmp_path, "record/", pinned, "spec.yaml")
    assert (evidence.state, evidence.kind, evidence.files) == ("mismatched", "folder", 4)
    assert said(evidence.notes) == "against its own manifest.json: changed a; added d; removed b"


def test_a_folder_that_agrees_with_itself_was_swapped_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "manifest.json").write_bytes(Manifest.scan(tmp_path).encode())
    evidence = inspect("record", tmp_path, "record/", digest_bytes(b""), "spec.yaml")
    assert (
        said(evidence.notes)
        == "agrees with its own manifest.json, so the folder as a whole is another one"
    )


@pytest.mark.parametrize("own", [None, b"not json"])
def test_a_folder_without_a_sound_manifest(tmp_path: Path, own: bytes | None) -> None:
    (tmp_path / "a").write_bytes(b"a")
    if own is not None:
        (tmp_path / "manifest.json").write_bytes(own)
    evidence = inspect("code", tmp_path, "code/", digest_bytes(b""), "spec.yaml")
    assert (evidence.state, said(evidence.notes)) == (
        "mismatched",
        "the files are not the pinned ones",
    )
