"""One thread that writes a record's files in order, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs jobs one after another; what fails is raised at the next job or at the end."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "auditspec-record")
        self._jobs: list[Future[None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job after those submitted before.

        Raises:
            Exception: what an earlier job raised, such as OSError for a full disk.
        """
        self._raise_failures()
        self._jobs.append(self._thread.submit(job))

    def wait(self) -> None:
        """Wait until everything submitted is done.

        Raises:
            Exception: what a job raised.
        """
        for job in self._jobs:
            job.result()
        self._jobs = []

    def stop(self) -> None:
        """Let the jobs finish, whatever comes of them, and end the thread."""
        self._thread.shutdown(wait=True)

    def _raise_failures(self) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.pop(0).result()
