"""Threats of runs that are killed at any moment, many at once: into one packet, on one cache (S11)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_audit import edit_spec

from auditspec.artifacts.files import write_into

pytestmark = pytest.mark.threat
SCRIPT = Path(__file__).parents[1] / "support" / "forked_runs.py"


def came_to_their_end(spec: Path, *numbers: int) -> int:
    folder = spec.parent
    subprocess.run(
        [sys.executable, "-m", "auditspec", "keys", "new", "auditor"],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    edit_spec(
        spec,
        lambda data: data.update(signing={"key": "auditor.key"}, report={"formats": ["json"]}),
    )
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *map(str, numbers)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return int(ran.stdout)


WRITERS = """\
import os, random, signal, sys, time
from pathlib import Path
from auditspec.sign.packet import PacketWriter, REQUIRED

place, draw = Path(sys.argv[1]), random.Random(0)

def write(number):
    with PacketWriter(place, replace=True) as packet:
        for name in REQUIRED:
            packet.write(name, number)

write(b"0")
for number in range(25):
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            while True:
                write(str(number).encode())
        children.append(child)
    for child in children:
        time.sleep(draw.uniform(0.0, 0.004))
        os.kill(child, draw.choice((signal.SIGKILL, signal.SIGTERM)))
        os.waitpid(child, 0)
    assert len({(place / name).read_bytes() for name in REQUIRED}) == 1, number
write(b"last")
"""


def test_s11_a_hundred_writers_that_are_killed(tmp_path: Path) -> None:
    """What stands there is of one writer; what they left, the next one removes."""
    place = tmp_path / "packet"
    ran = subprocess.run(
        [sys.executable, "-c", WRITERS, str(place)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {p.read_text() for p in place.iterdir()} == {"last"}
    assert [p.name for p in tmp_path.iterdir()] == ["packet"]


@pytest.mark.slow
def test_s11_many_runs_of_which_most_are_killed(audit_spec: Path) -> None:
    """Nothing is lost, half-written, or left: packets verify, numbers are the same, processes and files go."""
    runs = int(os.environ.get("AUDITSPEC_RUNS", "24"))
    assert came_to_their_end(audit_spec, runs, 4, 4, 0) >= runs // 4


KILLED = """\
import os, signal, sys
from pathlib import Path
from auditspec.artifacts import files


Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_into(Path(sys.argv[1]), sys.argv[2], b"new")
"""


@pytest.mark.parametrize("name", ["packet.dsse.json", "packet.log.json", "manifest.dsse.json"])
def test_s11_a_signer_that_is_killed_leaves_a_closed_folder_as_it_was(
    tmp_path: Path, name: str
) -> None:
    """A packet or record with a file that does not belong there would be refused from then on."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_text("old")
    ran = subprocess.run([sys.executable, "-c", KILLED, str(folder), name], check=False)
    assert ran.returncode == -9
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, "old")]
    write_into(folder, name, b"new")
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, "new")]


def test_s11_a_folder_alone_on_its_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def replaced(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(18, "Invalid cross-device link")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replaced)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_into(folder, "packet.log.json", b"new")
    assert [p.name for p in folder.iterdir()] == ["packet.log.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
