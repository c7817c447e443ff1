"""Reading what may be hostile in a process of its own, within limits of time, memory, and output.

The process is a fresh interpreter that imports one of our modules and calls its `main`. It inherits nothing but
the files that it is given by descriptor; when it has imported what it needs, it limits itself (`limit`).
"""

from __future__ import annotations

import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_START = (
    "import sys, importlib; sys.path[:] = sys.argv[1].split(chr(10)); "
    "importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"
)


class StoppedError(Exception):
    """The process refused its input, or came to a limit; the text says which, in one line."""


def run(
    module: str,
    arguments: Sequence[object],
    given: Sequence[int],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Call `main` of a module in a process of its own, and wait for it.

    Args:
        module: its full name.
        arguments: what `main` is called with, as text.
        given: the descriptors that the process may use.
        seconds: most time on the clock.
        environment: its variables; None: those of this process.

    Raises:
        StoppedError: if it refused its input, came to a limit, or failed.
    """
    path = "\n".join(str(Path(place).absolute()) for place in sys.path)
    try:
        ran = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", "-c", _START, path, module, *map(str, arguments)],
            pass_fds=tuple(given),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            cwd="/",
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StoppedError(f"reading it took more than {seconds:g} seconds") from None
    if ran.returncode == -signal.SIGXCPU:
        raise StoppedError("reading it took more processor time than it may")
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip().splitlines()
        stopped = f"reading it was stopped at its limits (status {ran.returncode})"
        raise StoppedError(said[-1] if ran.returncode == 1 and said else stopped)


def resident() -> int:
    """Bytes of memory that this process fills."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit(memory: int, seconds: int, output: int, more: tuple[int, int] = (0, 0)) -> None:
    """Bound this process from here on.

    Args:
        memory: most bytes of address space beyond what is in use.
        seconds: most processor time beyond what was used.
        output: most bytes of a file that it writes.
        more: memory and seconds that `widen` adds, once.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
    until = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_AS, (used, used + more[0]))
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + more[1] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def widen() -> None:
    """Take what was set aside: `more` of `limit`."""
    for kind, last in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_CPU, 1)):
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            resource.setrlimit(kind, (most - last, most))


def refuse(why: str) -> NoReturn:
    """End the process with one line for `StoppedError`."""
    sys.stderr.write(" ".join(why.split()) + "\n")
    sys.exit(1)
