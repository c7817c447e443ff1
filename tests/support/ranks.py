"""Start a script on several ranks, and wait for them; none outlives the test."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent


def on_ranks(
    script: str, world: int, folder: Path, *arguments: str, seconds: float = 400
) -> list[str]:
    """What each rank said, after all ended well.

    Args:
        script: of this folder; is given RANK, WORLD, FOLDER, and the arguments.
        world: how many ranks.
        folder: made if it is not there.
        arguments: more.
        seconds: after which all are killed.
    """
    said, codes = ended(script, world, folder, *arguments, seconds=seconds)
    assert codes == [0] * world, "\n".join(said)
    return said


def ended(
    script: str, world: int, folder: Path, *arguments: str, seconds: float = 400
) -> tuple[list[str], list[int]]:
    """What each rank said, and the code with which it ended; -9 where it was killed for its time."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{Path(script).stem}-{rank}.log" for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(SUPPORT / script), str(rank), str(world), str(folder)]
        with log.open("wb") as out:
            processes.append(
                subprocess.Popen([*command, *arguments], stdout=out, stderr=subprocess.STDOUT)
            )
    until = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
    codes = [process.wait() for process in processes]
    return [log.read_text() for log in logs], codes
