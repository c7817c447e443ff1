"""A command line begins again, in memory that knows nothing; what it forks waits, or ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import json, os, sys, time
from auditspec.sealed.zygote import begin, begin_again, taken

begin()
begin_again()
zygote = taken()
assert taken() is None
facts = {"argv": sys.argv, "forked": 0}
if zygote is not None:
    facts["forked"] = zygote.child.pid
    facts["variables"] = open("/proc/self/environ").read().split(chr(0))
    facts["same"] = {n.decode("latin1"): v.decode("latin1") for n, v in os.environb.items()}
    facts["cryptography"] = "cryptography" in sys.modules
    folder, until = f"/proc/{zygote.child.pid}/fd", time.monotonic() + 5
    while len(os.listdir(folder)) > 3 and time.monotonic() < until:
        time.sleep(0.01)  # it closes the others first of all
    facts["links"] = [os.readlink(f"{folder}/{n}") for n in os.listdir(folder)]
print(json.dumps(facts), flush=True)
if "end" in sys.argv:
    zygote.child.kill()
    print(zygote.child.wait(5), zygote.child.wait(5))
if "die" in sys.argv:
    os.kill(os.getpid(), 9)
"""


def run(program: Path, *arguments: str, options: tuple[str, ...] = ()) -> tuple[dict, str]:
    program.write_text(PROGRAM)
    own = {b"AUDITOR_SECRET": b"a\nsecret = \xff", b"OMP_NUM_THREADS": b"1", b"EMPTY": b""}
    ran = subprocess.run(
        [sys.executable, *options, str(program), *arguments],
        env={**os.environb, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == (-9 if "die" in arguments else 0), ran.stderr
    told, _, rest = ran.stdout.partition("\n")
    return json.loads(told), rest


def test_the_second_beginning_is_as_the_first_and_what_it_forks_knew_no_variable(
    tmp_path: Path,
) -> None:
    facts, rest = run(tmp_path / "program.py", "one argument", "end")
    assert facts["argv"] == [str(tmp_path / "program.py"), "one argument", "end"]
    assert facts["same"]["AUDITOR_SECRET"] == "a\nsecret = \xff"
    assert facts["same"]["EMPTY"] == ""
    assert facts["same"].keys() == {*os.environ, "AUDITOR_SECRET", "OMP_NUM_THREADS", "EMPTY"}
    names = {pair.partition("=")[0] for pair in facts["variables"]}
    assert "OMP_NUM_THREADS" in names
    assert not names & {"AUDITOR_SECRET", "EMPTY"}
    assert {link.partition(":")[0] for link in facts["links"]} == {"socket", "pipe"}
    assert not facts["cryptography"]  # no state of random numbers that keys are made or used with
    assert rest.split() == ["-9", "-9"]


def test_it_ends_with_the_one_that_forked_it(tmp_path: Path) -> None:
    facts, _ = run(tmp_path / "program.py", "die")
    state, until = "S", time.monotonic() + 10
    while state not in "ZX" and time.monotonic() < until:
        try:
            state = Path(f"/proc/{facts['forked']}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            state = "X"
        time.sleep(0.01)
    assert state in "ZX"


def test_where_python_was_told_of_warnings_none_is_forked(tmp_path: Path) -> None:
    assert run(tmp_path / "program.py", options=("-W", "error"))[0]["forked"] == 0
