"""Runs of one audit at once, some of them killed: forks of one process that has imported everything already.

Arguments: the audit's folder, how many runs, how many of them at once, every how-many-th is sealed, and a seed. After each round it
looks at what stands there; it prints how many runs came to their end, and exits with 1 at the first thing that is wrong.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import unfenced

KILLS = (None, None, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_BE_A_SUBREAPER = 36
PATIENCE = 20.0
"""Seconds that what a killed run started may take to end."""


def warm() -> None:
    """Import what a run imports; a run itself would leave threads, which no fork has."""

    import auditspec.api
    import auditspec.bill_of_materials
    import auditspec.cli.main
    import auditspec.cli.run
    import auditspec.flow
    import auditspec.report.exports.html_page
    import auditspec.report.renderer
    import auditspec.sealed.start
    import auditspec.verification.content

    auditspec.bill_of_materials.environment()
    auditspec.report.renderer.renderer()


def forked(work: Any, errors: Path) -> int:
    """Do something in a fork, which no Ctrl-C reaches before it lets it; its number."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return child
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with errors.open("wb") as file:
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
    os._exit(code)


def run(place: str, *, sealed: bool) -> None:
    os.environ["AUDITSPEC_ISOLATION"] = "best" if sealed else "none"
    from auditspec.cli.main import main

    sys.argv = ["auditspec", "run", "audit.yaml", "-o", place, "--force", "--cache", "cache", "-q"]
    main(heed)


def heed() -> None:
    """Be open to Ctrl-C."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def check(place: str) -> None:
    """A packet verifies."""
    from auditspec.api import verify

    with pytest.MonkeyPatch.context() as patch:
        unfenced.unfence(patch)
        sys.exit(0 if verify(place, trust="trust.yaml").summary.startswith("valid") else 1)


def numbers(place: Path) -> list[Any]:
    """What does not depend on where the code ran."""
    result = json.loads((place / "results.json").read_bytes())
    named = [
        [verdict[k] for k in ("behavior", "verdict", "parties")] for verdict in result["verdicts"]
    ]
    return [result["effects"], result["draws"], result["gate"], named]


def waited_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def orphans() -> list[str]:
    """What killed runs started and is alive, after some patience; this process inherits it."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        except ChildProcessError:
            return []
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def insist(holds: bool, what: str) -> None:
    if not holds:
        print(what)
        sys.exit(1)


def leftovers() -> set[Path]:
    """Hidden files of the audit's folder, temporary ones but torch's, shared memory."""
    places = (Path.cwd(), Path("temporary").absolute(), Path("/dev/shm"))
    files = {path for place in places for path in place.iterdir()}
    return {f for f in files if f.parent != Path.cwd() or f.name.startswith(".")} - {
        f for f in files if f.name.startswith("torchinductor")
    }


def a_round(draw: random.Random, number: int, together: int, every: int, longest: float) -> int:
    """Some runs at once into two places, on one cache; how many of them came to their end."""
    shutil.rmtree("cache", ignore_errors=True)
    running = {}
    for n in range(number, number + together):
        sealed, place = n % every == 0, draw.choice(("packet", "packet", "other"))
        said = Path(f"said-{n}")
        child = forked(lambda place=place, sealed=sealed: run(place, sealed=sealed), said)
        kill = draw.choice(KILLS)
        when = time.monotonic() + draw.uniform(0.0, longest * (4 if sealed else 1))
        running[child] = kill, when, said
    for child, (kill, when, _) in sorted(running.items(), key=lambda item: item[1][1]):
        if kill is not None:
            time.sleep(max(0.0, when - time.monotonic()))
            os.kill(child, kill)
    ended = 0
    for child, (kill, _, said) in running.items():
        code, text = waited_for(child), said.read_text()
        insist(
            code == 1 or kill is not None, f"a run that nobody killed exited with {code}: {text}"
        )
        insist(code in (1, 130, -15, -9) and "Traceback" not in text, f"exit {code}: {text}")
        ended += code == 1
        said.unlink()
    return ended


def main(folder: str, *numbers_: str) -> None:
    runs, together, every, seed = map(int, numbers_)
    ctypes.CDLL(None).prctl(_BE_A_SUBREAPER, 1, 0, 0, 0)
    os.chdir(folder)
    Path("temporary").mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(Path("temporary").absolute())
    draw, before = random.Random(seed), leftovers()
    warm()
    began = time.monotonic()
    child = forked(lambda: run("reference", sealed=False), Path("said"))
    insist(waited_for(child) == 1, Path("said").read_text())
    longest, right, ended = time.monotonic() - began, numbers(Path("reference")), 0
    for number in range(0, runs, together):
        ended += a_round(draw, number, together, every, longest * together / 2)
        insist((left := orphans()) == [], f"processes are left: {left}")
        for place in filter(Path.exists, map(Path, ("packet", "other"))):
            insist(numbers(place) == right, f"{place}: other numbers")
            child = forked(lambda place=place: check(str(place)), Path("said"))
            insist(waited_for(child) == 0, f"{place} does not verify: {Path('said').read_text()}")
    for place in ("packet", "other"):  # the next one sweeps
        child = forked(lambda place=place: run(place, sealed=True), Path("said"))
        insist(waited_for(child) == 1 and numbers(Path(place)) == right, "the last run failed")
    insist((left := leftovers() - before) == set(), f"files are left: {left}")
    print(ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
