"""Several processes at one audit: the first decides and writes, the others make what it hands out.

A launcher (torchrun, or whatever sets RANK, WORLD_SIZE, MASTER_ADDR, and MASTER_PORT) starts the same command on every
rank. They talk through the launcher's key-value store, in JSON:

    first       an id that the first rank draws, under which all else stands: a launcher that starts all ranks again keeps its
                store, and what the ranks of before left there is none of theirs
    job/N       what is to be made, handed out by the first rank; N counts from 0
    claims      a counter: whoever adds 1 takes the job of that number, as soon as it is there
    claimed/N   the rank that took it
    done/N      what came of it
    alive/R     a counter of rank R, which stands still when that is gone
    end         set by the first rank, when there is nothing more to do

Tensors go through a folder that all can read (`exchange`). A job whose rank is gone, or failed, is made by the first rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from auditspec.errors import UsageError

Job = Mapping[str, Any]
"""With its `kind`; as JSON holds it."""
DEAD = 60.0
"""Seconds without a sign of a rank after which it counts as gone."""
BEAT = 1.0
"""Seconds between two signs."""
MEETING = 600.0
"""Seconds that ranks wait for the store, and for the first of them."""
FIRST = "auditspec/first/{start}"
"""Where the first rank's id stands, of the launcher's so-manieth start."""
LOOK = 0.05
"""Seconds between two looks into the store."""


def rank() -> int:
    """Of this process among those that a launcher started for one audit; 0 where it is alone."""
    return int(os.environ["RANK"]) if _size() > 1 else 0


def restarts_what_fails() -> bool:
    """Whether the launcher takes every exit status but 0 for a process that died."""
    return _size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int | None:
    """Of this process on its machine; None where it is alone."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _size() > 1 else None


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


@dataclass
class Team:
    """One process of a team.

    Args:
        store: of the launcher (`torch.distributed.Store`).
        rank: of this process.
        size: how many there are.
        dead: seconds without a sign of a rank after which it counts as gone.
    """

    store: Any
    rank: int
    size: int
    dead: float = DEAD
    folder: Path | None = None
    """Of tensors; None before it is named."""
    _posted: int = 0
    _held: int | None = None
    """Number of the job that this rank has taken, and has not made."""
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    """The last sign of each rank, and when it came."""

    @classmethod
    def here(cls) -> Team | None:
        """The team that this process is one of; None where it is alone.

        Raises:
            UsageError: if the launcher's store, or the first rank, cannot be reached.
        """
        if _size() == 1:
            return None
        from torch.distributed.rendezvous import rendezvous

        try:
            store, own, size = next(rendezvous("env://", timeout=timedelta(seconds=MEETING)))
            return cls.joining(store, own, size)
        except (RuntimeError, ValueError, OSError) as error:
            raise UsageError(
                f"rank {os.environ['RANK']}: the other ranks cannot be reached ({error})",
                "start every rank with torchrun, or set MASTER_ADDR and MASTER_PORT",
            ) from None

    @classmethod
    def joining(cls, store: Any, own: int, size: int, within: float = MEETING) -> Team:
        """The team of the first rank that is there now.

        Args:
            store: of the launcher.
            own: this process's rank.
            size: how many there are.
            within: seconds that the first rank has to come.

        Raises:
            TimeoutError: if it does not.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        named = FIRST.format(start=os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if own == 0:
            first = secrets.token_hex(16)
            store.set(named, first)
            return cls(PrefixStore(first, store), own, size)
        until = time.monotonic() + within
        seen: dict[str, int] = {}
        while time.monotonic() < until:
            if store.check([named]):
                first = store.get(named).decode()
                team = cls(PrefixStore(first, store), own, size)
                sign = team._sign(0)
                # one of before, where the launcher did not count its starts, gives no more signs
                if sign > seen.setdefault(first, sign) or team.store.check(["end"]):
                    return team
            time.sleep(LOOK)
        raise TimeoutError(f"rank 0 gave no sign within {within:g} s")

    # --- the first rank -----------------------------------------------------------------------------

    def open(self, exchange: Path) -> None:
        """Name the folder of tensors to the others, which may begin then."""
        self.folder = exchange.absolute()
        self.store.set("exchange", str(self.folder))

    def share(
        self, jobs: Sequence[Job], make: Callable[[Job], Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """What came of some jobs, in their order, made by whoever was free.

        Args:
            jobs: to be made.
            make: makes one here.
        """
        first = self._posted
        self._posted += len(jobs)
        for number, job in enumerate(jobs, first):
            self.store.set(f"job/{number}", json.dumps(job))
        made: dict[int, Mapping[str, Any]] = {}
        while (number := self._claim()) < self._posted:
            self._held = None
            made[number] = make(jobs[number - first])
        for number, job in enumerate(jobs, first):
            if number not in made:
                found = self._result(number)
                made[number] = make(job) if found is None else found
        return [made[number] for number in sorted(made)]

    def _claim(self) -> int:
        if self._held is None:
            self._held = self.store.add("claims", 1) - 1
        return self._held

    def _result(self, number: int) -> Mapping[str, Any] | None:
        """What another rank made of a job; None where it failed, or is gone."""
        began = time.monotonic()
        while not self.store.check([f"done/{number}"]):
            if self.store.check([f"claimed/{number}"]):
                alive = self._alive(int(self.store.get(f"claimed/{number}")))
            else:  # whoever took it had no time to say so
                alive = time.monotonic() - began < self.dead
            if not alive:
                return None
            time.sleep(LOOK)
        found: Mapping[str, Any] = json.loads(self.store.get(f"done/{number}"))
        return None if "failed" in found else found

    # --- the other ranks ----------------------------------------------------------------------------

    def exchange(self) -> Path | None:
        """The folder of tensors, once the first rank has named it; None where there is nothing to do."""
        found = None
        with contextlib.suppress(RuntimeError):  # the store went with whoever held it
            found = None if self.store.check(["end"]) else self._await("exchange")
        return None if found is None else Path(found)

    def serve(self, makers: Mapping[str, Callable[[Job], Mapping[str, Any]]]) -> None:
        """Make jobs until the first rank has no more, or is gone.

        Args:
            makers: by the kind of job.
        """
        with contextlib.suppress(RuntimeError):  # the store went with whoever held it
            while self._make_one(makers):
                pass

    def _make_one(self, makers: Mapping[str, Callable[[Job], Mapping[str, Any]]]) -> bool:
        """Whether there was another job."""
        number = self.store.add("claims", 1) - 1
        self.store.set(f"claimed/{number}", str(self.rank))
        found = self._await(f"job/{number}")
        if found is None:
            return False
        job = json.loads(found)
        result: Mapping[str, Any]
        try:
            result = makers[job["kind"]](job)
        except Exception as error:  # the first rank makes it too, and says what is wrong
            result = {"failed": f"{type(error).__name__}: {error}"}
        self.store.set(f"done/{number}", json.dumps(result))
        return True

    def _await(self, key: str) -> str | None:
        """What the first rank says; None once it has ended, or is gone."""
        while not self.store.check([key]):
            if self.store.check(["end"]) or not self._alive(0):
                return None
            time.sleep(LOOK)
        return str(self.store.get(key).decode())

    # --- signs of life ------------------------------------------------------------------------------

    def _sign(self, other: int) -> int:
        key = f"alive/{other}"
        return int(self.store.get(key)) if self.store.check([key]) else 0

    @contextmanager
    def present(self) -> Iterator[None]:
        """Give signs of life, through a connection of their own; when the first rank leaves the block, the others end."""
        over, store = threading.Event(), self.store.clone()

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone: so is the launcher
                while not over.wait(BEAT):
                    store.add(f"alive/{self.rank}", 1)

        self.store.add(f"alive/{self.rank}", 1)
        thread = threading.Thread(target=beat, name="auditspec-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self.rank == 0:
                with contextlib.suppress(RuntimeError):
                    self.store.set("end", "1")

    def _alive(self, other: int) -> bool:
        """Whether there was a sign of a rank lately."""
        sign = self._sign(other)
        last, when = self._seen.get(other, (-1, 0.0))
        if sign != last:
            self._seen[other] = sign, time.monotonic()
            return True
        return time.monotonic() - when < self.dead
