"""Python's search for cycles of garbage, put off where nearly everything that is made is kept.

Loading modules and drawing pages make millions of objects and hardly a cycle. Searching them again and again took a quarter
of the time.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def unsearched() -> Iterator[None]:
    """Nothing is searched within: for what keeps nearly all that it makes, and is soon over."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _alone.get():
            gc.freeze()
        if searching:
            gc.enable()


@contextmanager
def own_process() -> Iterator[None]:
    """The process is there for this alone: what is loaded or drawn in it is not searched later, nor when the process ends."""
    token = _alone.set(True)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        _alone.reset(token)
        gc.unfreeze()
