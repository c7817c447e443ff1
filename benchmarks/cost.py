"""What a computation costs here: CPU and wall seconds, and the memory it adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one call, on the thread count in force."""

    cpu: float
    wall: float
    peak_mb: float | None
    """Peak resident memory above that before the call; None where the system cannot tell."""


def measured(compute: Callable[[], T]) -> tuple[T, Cost]:
    """What it gives, and what it cost."""
    before = _resident("VmRSS") if _reset_peak() else None
    cpu, wall = time.process_time(), time.perf_counter()
    found = compute()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    after = _resident("VmHWM") if before is not None else None
    peak = None if before is None or after is None else max(0.0, after - before)
    return found, Cost(cpu, wall, peak)


def _reset_peak() -> bool:
    """Make the kernel's peak counter start again from the present size (Linux)."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return STATUS.exists()


def _resident(field: str) -> float | None:
    """A field of the process's status, in MB."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return None
