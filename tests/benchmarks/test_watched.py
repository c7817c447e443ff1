"""What commands take, seen from outside."""

import os
import sys
from pathlib import Path

from benchmarks.watched import watched

PROGRAM = """
import subprocess, sys, tempfile, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
else:
    held = bytearray(b"x") * 150_000_000
    with tempfile.TemporaryFile() as nameless, tempfile.NamedTemporaryFile() as named:
        for file in (nameless, named):
            file.write(b"x" * 1_000_000)
            file.flush()
        while time.process_time() < 1:
            pass
        time.sleep(0.5)
"""


def test_a_command_and_its_child_are_watched(tmp_path: Path) -> None:
    program, scratch = tmp_path / "program.py", tmp_path / "scratch"
    program.write_text(PROGRAM)
    scratch.mkdir()
    use = watched(
        [sys.executable, str(program)], tmp_path, scratch, {**os.environ, "TMPDIR": str(scratch)}
    )
    assert (use.code, use.log) == (0, "")
    assert 0.7 < use.cpu < use.wall + 1
    assert 150e6 < use.memory < 250e6
    assert 150e6 < use.together < use.memory + 50e6
    assert use.disk == 2_000_000
