"""What a command and all that it starts take: processor time, memory, and space for files (Linux)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
INTERVAL = 0.25
"""Seconds between two looks."""


@dataclass(frozen=True)
class Use:
    """Of a command with all that it started."""

    cpu: float
    """Seconds of user and system time, of those too that nobody waited for."""
    wall: float
    memory: int
    """Most resident bytes of any one of the processes; the kernel keeps count."""
    together: int
    """Most resident bytes of all of them at one look; what several share counts once."""
    disk: int
    """Most bytes of the watched folder at one look, with files that are open but have no name any more."""
    code: int
    """Exit status."""
    log: str
    """What it printed."""


def watched(
    command: Sequence[str], folder: Path, scratch: Path, environment: Mapping[str, str]
) -> Use:
    """Run a command.

    Args:
        command: program and arguments.
        folder: where it runs.
        scratch: folder whose space is watched.
        environment: all of its variables.
    """
    began = time.perf_counter()
    cpu: dict[int, float] = {}
    memory: dict[int, int] = {}
    together = disk = 0
    printed = folder / "printed.log"
    with printed.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            family = list(_family(process.pid))
            for pid in family:
                cpu[pid] = max(cpu.get(pid, 0.0), _seconds(pid))
                memory[pid] = max(memory.get(pid, 0), _field(pid, "status", "VmHWM"))
            together = max(together, sum(_field(pid, "smaps_rollup", "Pss") for pid in family))
            disk = max(disk, _space(scratch, family))
            time.sleep(INTERVAL)
    return Use(
        cpu=sum(cpu.values()),
        wall=time.perf_counter() - began,
        memory=max(memory.values(), default=0),
        together=together,
        disk=disk,
        code=process.returncode,
        log=printed.read_text(),
    )


def _family(pid: int) -> Iterator[int]:
    """A process and those that it and they started."""
    yield pid
    for listed in (PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listed.read_text().split():
                yield from _family(int(child))


def _seconds(pid: int) -> float:
    """Processor time of a process, without that of others that it started; 0 once it is gone."""
    with contextlib.suppress(OSError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    return 0.0


def _field(pid: int, file: str, field: str) -> int:
    """A number of what the kernel tells of a process, in bytes; 0 once it is gone."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / file).read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _space(folder: Path, family: Sequence[int]) -> int:
    """Bytes of the files below a folder, and of those that were made there and are only open any more."""
    named = [path for path in folder.rglob("*") if path.is_file()]
    nameless = [
        link
        for pid in family
        for link in _links(pid)
        if str(target := _target(link)).startswith(f"{folder}/") and target.endswith(" (deleted)")
    ]
    files: dict[tuple[int, int], int] = {}
    for path in (*named, *nameless):
        with contextlib.suppress(OSError):
            found = path.stat()
            files[found.st_dev, found.st_ino] = found.st_size
    return sum(files.values())


def _links(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list((PROC / str(pid) / "fd").iterdir())
    return []


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""
