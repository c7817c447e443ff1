"""Python's search for cycles of garbage, put off where nearly everything that is made is kept.

Loading modules and drawing pages make millions of objects and hardly a cycle. Searching them again and again took a quarter
of the time.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsearched() -> Iterator[None]:
    """Nothing is searched within: for what keeps nearly all that it makes, and is soon over."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def end_unsearched() -> None:
    """What is there when the process ends is left to the system, and not searched once more."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
