"""One thread that writes in order."""

from __future__ import annotations

import threading
import time

import pytest

from auditspec.recorder.writer_thread import Background


def test_jobs_run_in_order_in_a_thread_of_their_own() -> None:
    background, done = Background(), []
    for number in range(5):
        background.submit(lambda n=number: (time.sleep(0.01 * (5 - n)), done.append(n))[1])  # type: ignore[misc]
    background.submit(lambda: done.append(threading.current_thread() is threading.main_thread()))
    background.wait()
    assert done == [0, 1, 2, 3, 4, False]
    background.stop()


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_what_a_job_raised_is_raised_at_the_next_or_at_the_end() -> None:
    background = Background()
    background.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        background.wait()
    background = Background()
    background.submit(fail)
    time.sleep(0.05)
    with pytest.raises(OSError, match="No space left"):
        background.submit(lambda: None)
    background.stop()
