"""The processes that train one model together, as the recorder of each sees them.

Every rank has a recorder, and the first one writes. Whatever it decides, the others are told, and what it
refuses, all refuse: none is left waiting for one that has stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from auditspec.errors import RecordError
from auditspec.record.format import Layout

T = TypeVar("T")
MEETING = timedelta(minutes=5)
"""How long a rank waits for the others to make their recorders."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; one alone needs no group.

    Args:
        rank: of this process.
        size: how many there are.
        group: of their own, so that what recorders say does not stand between what training says.
        sharded: whether each holds a part of the model only.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    sharded: bool = False

    @classmethod
    def here(cls, *, sharded: bool) -> Ranks:
        """Those of torch.distributed; every process must ask.

        Args:
            sharded: whether each holds a part of the model only.

        Raises:
            RecordError: if a launcher started several that do not know one another yet, or some do not ask.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            launched = distributed.is_available() and distributed.is_torchelastic_launched()
            if launched and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise RecordError(
                    f"torchrun started {os.environ['WORLD_SIZE']} processes, and torch.distributed has no group",
                    "call torch.distributed.init_process_group before the recorder is made",
                )
            return cls()
        size = distributed.get_world_size()
        if size == 1:
            return cls()
        try:
            group: Any = distributed.new_group(backend="gloo", timeout=MEETING)
        except RuntimeError as error:
            raise RecordError(
                f"not all {size} processes of torch.distributed made a recorder: {error}",
                "make the recorder, and enter its stages, on every rank",
            ) from None
        group.set_timeout(distributed.distributed_c10d.default_pg_timeout)
        return cls(distributed.get_rank(), size, group, sharded)

    @property
    def layout(self) -> Layout:
        """As the record's header has it."""
        if self.size == 1:
            return Layout()
        return Layout(world_size=self.size, sharding="sharded" if self.sharded else "replicated")

    def gathered(self, value: T) -> list[T]:
        """The value of every rank, in their order, for the first; none for the others. All must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _others_there():
            distributed.gather_object(value, values if self.rank == 0 else None, 0, self.group)
        return values if self.rank == 0 else []

    def led(self, job: Callable[[], T], serve: Callable[[Any], object] | None = None) -> T:
        """What a job gives on the first rank; the others do not run it. All must call it.

        Args:
            job: of the first rank.
            serve: of the others, for what the job asks of them (`ask`).

        Raises:
            RecordError: on the others, if it failed on the first.
            Exception: on the first, what it raised.
        """
        if self.size == 1:
            return job()
        told: list[Any] = [None, None, None]
        failed: Exception | None = None
        if self.rank == 0:
            try:
                told[0] = job()
            except Exception as error:
                failed = error
                told[1] = _said(error)
        self._tell(told)
        while told[2] is not None and serve is not None:
            serve(told[2])
            self._tell(told)
        if failed is not None:
            raise failed
        if told[1] is not None:
            raise RecordError(*told[1])
        result: T = told[0]
        return result

    def ask(self, what: Any) -> None:
        """Let all other ranks serve, from within a job that the first one does (`led`)."""
        self._tell([None, None, what])

    def _tell(self, told: list[Any]) -> None:
        """Give all other ranks what the first one has: what a job gave, its error, and what is asked of them."""
        with _others_there():
            distributed.broadcast_object_list(told, 0, self.group)


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's: the connection was closed, or the time is over
        raise RecordError(
            f"another process of this run failed, or left it: {error}",
            "see what the other processes said last",
        ) from error


def _said(error: Exception) -> tuple[str, str]:
    """What the other ranks are told of an error of the first."""
    if isinstance(error, RecordError):
        return error.message, error.remedy
    return f"rank 0 failed: {type(error).__name__}: {error}", "see what rank 0 says"
