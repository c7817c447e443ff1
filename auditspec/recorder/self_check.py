"""The self-check: a stage's first window, re-run at once in a fresh process, beside the training.

What a record lacks shows when it is run again: random numbers that nobody recorded, a loss that is not
the objective's, weights that something else than the optimizer changed. An audit would find it, when the
run is over and cannot be had again. The process that trains asks at every step how it went, without
waiting, and waits where the stage ends.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from auditspec.artifacts.scratch import scratch
from auditspec.errors import RecordError
from auditspec.record.format import SelfChecked, StageHeader
from auditspec.recorder.events import StepMade
from auditspec.recorder.probe import Probe
from auditspec.recorder.question import INSIDE, Answer, Question

SWITCH = "AUDITSPEC_SELF_CHECK"
"""Environment variable; 0: no self-check, whatever the recorder is told."""
PATIENCE, LONGER = 180.0, 20.0
"""Seconds that a check may take, and how many times those that the window took come on top."""


def wanted(asked: bool) -> bool:
    """Whether to check: the recorder's argument, unless the environment says no."""
    return asked and os.environ.get(SWITCH) != "0"


LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_")
"""What torchrun tells its processes: that which checks is none of them."""
Load = Callable[[Any, Any], Any]
"""(dataset, ids) -> batch"""


class Child:
    """A process that answers the question in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER)}
        environment |= {INSIDE: "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "auditspec.recorder.recheck", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the process that trains, which ends this one
            )

    def done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, and no longer."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(seconds, 0.0))

    def answer(self) -> Answer:
        """What it answered."""
        answer = Answer.read(self.folder)
        if answer is not None:
            return answer
        said = (self.folder / "stderr").read_text(errors="replace").strip().splitlines()
        why = f"it ended with {self._process.returncode}{f': {said[-1]}' if said else ''}"
        return Answer("unchecked", problem=why)

    def end(self) -> None:
        """End it."""
        if not self.done():
            self._process.kill()
            self._process.wait()


class SelfCheck:
    """The check of one stage.

    Args:
        record: the record's folder.
        header: of the stage.
        stop: end of the window that is checked; 0: nothing is.
        probe: notes the first steps.
        datasets: paths of all data sets so far, by name.
        submit: runs a job after what was written of the record before.
        noted: told what came of it, for the record.
    """

    def __init__(
        self,
        record: Path,
        header: StageHeader,
        stop: int,
        probe: Probe,
        datasets: Mapping[str, Path],
        *,
        submit: Callable[[Callable[[], None]], None],
        noted: Callable[[SelfChecked], None],
    ) -> None:
        self._record = record
        self._header = header
        self._stop = stop
        self._probe = probe
        self._datasets = datasets
        self._submit = submit
        self._noted = noted
        self._made = 0
        self._began = time.monotonic()
        self._until = math.inf
        self._folder: Path | None = None
        self._stack = ExitStack()
        self._child: Child | None = None
        self._launching = threading.Lock()
        self._launched = threading.Event()
        self._obstacle = ""
        self._over = stop == 0

    def loading(self, load_batch: Load | None) -> Load | None:
        """`load_batch`, as the stage's source is to call it."""
        if load_batch is None or self._over:
            return load_batch
        return self._probe.loading(load_batch)

    def telling(self, tell: Callable[[StepMade], None]) -> Callable[[StepMade], None]:
        """What hears the stage's steps, as the stage's source is to tell it."""

        def told(event: StepMade) -> None:
            tell(event)
            self._step_made()

        return tell if self._over else told

    def begin(self, start: int, *, notes: bool) -> None:
        """Begin to note; a window that an earlier process recorded is checked at once.

        Args:
            start: the first step that this process makes.
            notes: whether to note; a process that makes a part of each step sees no more than that.
        """
        self._made = start
        if not self._over and start == 0:
            if notes:
                self._probe.attach()
        elif not self._over and start >= self._stop:
            self._ask()

    def finish(self) -> None:
        """Wait for the answer: the stage's last step was made, and written.

        Raises:
            RecordError: if the record does not hold.
        """
        self._stop = min(self._stop, self._made)  # some steps may have been skipped
        if not self._over and self._folder is None:
            self._ask()
        if not self._over:
            self._launched.wait(max(self._until - time.monotonic(), 0.0))
            if self._child is not None:
                self._child.wait(self._until - time.monotonic())
            self._look()
        if not self._over:
            self._give_up("it did not end in time, and was ended")

    def end(self) -> None:
        """End the process that checks, if there is one, and forget what it was asked."""
        with self._launching:
            self._over = True
        self._probe.detach()
        if self._child is not None:
            self._child.end()
        self._stack.close()

    def _step_made(self) -> None:
        self._probe.note(self._made)
        self._made += 1
        if (
            self._made == self._stop < self._header.steps
        ):  # the last part of a stage is written at its end
            self._ask()
        self._look()

    def _ask(self) -> None:
        """Start the check once what was written so far is on disk."""
        memory = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        question = Question.here(
            record=str(self._record.absolute()),
            stage=self._header.id,
            stop=self._stop,
            datasets={name: str(path.absolute()) for name, path in self._datasets.items()},
            digests=self._header.datasets,
            device_memory=memory,
            notes=self._probe.notes(),
        )
        now = time.monotonic()
        self._until = now + PATIENCE + LONGER * (now - self._began)
        try:
            self._folder = self._stack.enter_context(scratch("self-check"))
            question.write(self._folder)
        except OSError as error:
            self._give_up(f"its question could not be written: {error}")
            return
        self._submit(self._launch)

    def _launch(self) -> None:
        """In the thread that writes the record."""
        try:
            with self._launching:
                if self._folder is not None and not self._over:
                    self._child = Child(self._folder)
        except OSError as error:
            self._obstacle = str(error)
        finally:
            self._launched.set()

    def _look(self) -> None:
        """See whether there is an answer; wait for none.

        Raises:
            RecordError: if the record does not hold.
        """
        if self._over or self._folder is None:
            return
        if self._obstacle:
            self._give_up(f"no process could be started for it: {self._obstacle}")
        elif self._child is not None and self._child.done():
            self._conclude(self._child.answer())
        elif time.monotonic() > self._until:
            self._give_up("it did not end in time, and was ended")

    def _conclude(self, answer: Answer) -> None:
        if answer.outcome == "fails":
            raise RecordError(
                f"{answer.problem}, in a fresh process, as in an audit: {answer.cause}",
                answer.remedy,
            )
        if answer.outcome == "unchecked":
            self._give_up(answer.problem)
            return
        self._over = True
        checked = SelfChecked(outcome=answer.outcome, steps=self._stop, deviation=answer.deviation)
        self._noted(checked)

    def _give_up(self, why: str) -> None:
        """Go on without: the record says so."""
        self._over = True
        if self._child is not None:
            self._child.end()
        logging.getLogger(__name__).warning(
            "stage '%s': its self-check was not made: %s", self._header.id, why
        )
        self._noted(SelfChecked(outcome="unchecked", steps=0, reason=why))
