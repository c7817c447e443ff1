"""`python -m auditspec`, and `auditspec`: the command line in a process of its own."""

import atexit
import os
import sys
from contextlib import suppress

from auditspec.cli.main import main
from auditspec.sealed.zygote import begin


def start() -> None:
    """Begin, for the first time or again, and end."""
    try:
        main(begin)
    except SystemExit as ended:
        if isinstance(ended.code, int):
            _end(ended.code)
        raise


def _end(code: int) -> None:
    """End at once: memory goes back as a whole, not object by object, which takes a fifth of a second.

    Where the last line cannot be written Python says so, in its own way.
    """
    atexit._run_exitfuncs()
    with suppress(OSError):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    start()
