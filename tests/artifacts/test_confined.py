import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from auditspec.artifacts.confined import StoppedError, run

MODULE = """
import json, os
from auditspec.artifacts.confined import limit, refuse

def main(what, out):
    limit(2**28, 1, 1000)
    if what == "refuse":
        refuse("no\\nthank you")
    if what == "spin":
        while True: pass
    if what == "grow":
        bytearray(2**30)
    if what == "write":
        os.write(int(out), b"x" * 2000)
        os.write(int(out), b"x")
    if what == "environment":
        os.write(int(out), json.dumps([sorted(os.environ), os.getcwd()]).encode())
    if what == "descriptors":
        os.write(int(out), repr(len(os.listdir("/dev/fd"))).encode())
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    (tmp_path / "confined_example.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with tempfile.TemporaryFile() as file:
        yield file


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("refuse", "^no thank you$"),
        ("spin", "more processor time than it may"),
        ("grow", "MemoryError"),
        ("write", "stopped at its limits|File too large"),
    ],
)
def test_limits(out: IO[bytes], what: str, said: str) -> None:
    with pytest.raises(StoppedError, match=said):
        run("confined_example", (what, out.fileno()), (out.fileno(),), 60)
    assert os.fstat(out.fileno()).st_size <= 1000


def test_a_clock_on_the_wall_too(out: IO[bytes]) -> None:
    with pytest.raises(StoppedError, match=r"more than 0\.01 seconds"):
        run("confined_example", ("spin", 0), (), 0.01)


def test_it_inherits_nothing(out: IO[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    with tempfile.TemporaryFile() as other:
        os.set_inheritable(other.fileno(), True)
        run("confined_example", ("environment", out.fileno()), (out.fileno(),), 60, {"A": "1"})
        out.seek(0)
        names, folder = json.loads(out.read())
        assert {"A"} <= set(names) <= {"A", "LC_CTYPE"} and folder == "/"
        out.seek(0)
        out.truncate()
        run("confined_example", ("descriptors", out.fileno()), (out.fileno(),), 60)
        out.seek(0)
        # standard streams, the one given, and the folder that is being listed
        assert int(out.read()) == 5
