"""Progress on stderr: bars on a terminal, a line per phase elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from auditspec.progress import SILENT, Advance, Progress

WORTH_A_LINE = 1.0
"""Seconds after which a phase is reported where no bar can be drawn."""


def progress_on_stderr(quiet: bool) -> AbstractContextManager[Progress]:
    """Bars where stderr is a terminal, lines for phases longer than a second elsewhere."""
    if quiet:
        return nullcontext(SILENT)
    return _bars() if sys.stderr.isatty() else nullcontext(Lines())


class Lines:
    """One line on stderr for each phase that took longer than a second."""

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """Report the phase when it ends."""
        began = time.perf_counter()
        yield lambda amount: None
        took = time.perf_counter() - began
        if took >= WORTH_A_LINE:
            steps = f", {total} steps" if total else ""
            print(f"{name}: {took:.1f} s{steps}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as RichProgress

    bars = RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )

    class Bars:
        @contextmanager
        def phase(self, name: str, total: int | None = None) -> Iterator[Advance]:
            task = bars.add_task(name, total=total)
            try:
                yield lambda amount: bars.advance(task, amount)
            finally:
                bars.remove_task(task)

    with bars:
        yield Bars()
