"""Folders for a while go, however the process ends and whatever was put into them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from auditspec.artifacts.scratch import remove, scratch

MAKES_ONE = """\
import time
from auditspec.artifacts.scratch import scratch

with scratch("test") as folder:
    (folder / "file").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, of this test alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_is_its_users_own_and_goes(around: Path) -> None:
    with scratch("test") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "inner").mkdir()
    assert [*around.iterdir()] == []


def test_the_next_one_removes_what_a_killed_process_left(around: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        with scratch("other"):
            assert (left / "file").exists()  # it is alive
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    with scratch("other"):
        assert not left.exists()


def test_what_others_put_there_stays(around: Path) -> None:
    others = ["auditspec-main", "auditspec-scratch-test-x-01234567", "auditspec-scratch-notes"]
    for name in others:
        (around / name).mkdir()
    target = around / "target"
    target.mkdir()
    (around / "auditspec-scratch-test-4194399-01234567").symlink_to(target)  # no such process
    with scratch("test"):
        pass
    assert len([*around.iterdir()]) == len(others) + 2


def deep(folder: Path) -> None:
    """Deeper than recursion or a path's length goes."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    for _ in range(1500):
        Path("d" * 20).mkdir()
        os.chdir("d" * 20)
    os.fchdir(here)
    os.close(here)


def closed(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").touch()
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    folder.chmod(0)


def linked(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "fifo")


def named_as_lifted(folder: Path) -> None:
    """Names that removing it uses itself."""
    (folder / "x").mkdir()
    for n in range(3):
        (folder / f"{n}.lifted").mkdir()
        (folder / "x" / f"{n}.lifted").touch()


@pytest.mark.parametrize("fill", [deep, closed, linked, named_as_lifted])
def test_hostile_contents_go_too(around: Path, fill: object) -> None:
    assert callable(fill)
    (around / "other").touch()
    folder = around / "folder"
    folder.mkdir()
    fill(folder)
    remove(folder)
    assert [p.name for p in around.iterdir()] == ["other"]
