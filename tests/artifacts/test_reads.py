"""Which files are noticed."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from auditspec.artifacts.reads import Reads


def watched(folder: Path) -> tuple[Reads, dict[str, set[str]]]:
    reads = Reads(lambda frame: frame.f_code.co_name)
    (folder / "a.txt").write_text("a")
    return reads, reads.found


def test_files_that_are_read_are_noticed_with_their_reader(tmp_path: Path) -> None:
    reads, found = watched(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    np.save(tmp_path / "n.npy", np.ones(2))
    (tmp_path / "b.txt").touch()

    def reader() -> None:
        open(tmp_path / "a.txt").close()  # noqa: PTH123
        os.close(os.open(tmp_path / "b.txt", os.O_RDONLY))
        with contextlib.suppress(FileNotFoundError):
            open(tmp_path / "not-there.txt")  # noqa: PTH123, SIM115 - as a path of code is tried

    with reads.watching():
        reader()
        torch.load(tmp_path / "w.pt")
        np.load(tmp_path / "n.npy")
    (tmp_path / "a.txt").read_text()
    assert {Path(p).name for p in found} == {"a.txt", "b.txt", "w.pt", "n.npy"}
    assert found[str(tmp_path / "a.txt")] == {"reader"}
    assert set(reads.files()) == set(found)


def test_relative_paths_are_those_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, found = watched(tmp_path)
    with reads.watching():
        monkeypatch.chdir(tmp_path)
        Path("a.txt").read_text()
        monkeypatch.chdir("/")
    assert list(found) == [str(tmp_path / "a.txt")]


def test_what_the_process_wrote_itself_is_left_out(tmp_path: Path) -> None:
    reads, found = watched(tmp_path)
    with reads.watching():
        (tmp_path / "new.txt").write_text("b")
        (tmp_path / "new.txt").rename(tmp_path / "moved.txt")
        (tmp_path / "moved.txt").read_text()
        with open(tmp_path / "a.txt", "a") as file:  # noqa: PTH123
            file.write("more")
    assert not found


def test_python_and_the_kernel_are_left_out(tmp_path: Path) -> None:
    reads, found = watched(tmp_path)
    with reads.watching():
        Path(os.__file__).read_text()
        Path(torch.__file__).read_text()
        Path(sysconfig.get_paths()["stdlib"], "json", "__init__.py").read_text()
        if sys.platform == "linux":
            Path("/proc/self/status").read_text()
    assert not found


def test_a_file_that_is_gone_stays_noticed_and_a_folder_does_not(tmp_path: Path) -> None:
    reads, _ = watched(tmp_path)
    with reads.watching():
        (tmp_path / "a.txt").read_text()
        os.close(os.open(tmp_path, os.O_RDONLY))
    (tmp_path / "a.txt").unlink()
    assert list(reads.files()) == [str(tmp_path / "a.txt")]


def test_watching_ends_with_whoever_watches(tmp_path: Path) -> None:
    noticed: list[str] = []

    def note(frame: object) -> None:
        noticed.append("read")

    reads = Reads(note)  # type: ignore[arg-type]
    reads.start()
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.txt").read_text()
    seen = len(noticed)
    assert seen
    del reads
    (tmp_path / "a.txt").read_text()
    assert len(noticed) == seen
