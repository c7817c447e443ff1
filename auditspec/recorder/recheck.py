"""Re-run windows of a record with code that is imported for it: `python -m auditspec.recorder.recheck FOLDER`.

The process knows of the training what an audit will know, the record, the code, and the data, and so
finds what a re-run inside the training process would not: generators that were never seeded, modules
that training changed.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from auditspec.artifacts.datasets import Dataset
from auditspec.attempt import reason_of
from auditspec.engine.interface import Engine
from auditspec.engine.loading import Functions, no_logits
from auditspec.engine.rerun import Rerun
from auditspec.errors import AuditspecError, EstimationError, EvidenceError, UsageError
from auditspec.record.describe import function_ref
from auditspec.record.format import FunctionRef, RecordHeader
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.recorder.causes import Cause, cause
from auditspec.recorder.diagnosis import diagnose, failure
from auditspec.recorder.main_guard import TrainsOnImportError
from auditspec.recorder.probe import Notes
from auditspec.recorder.question import INSIDE, Answer, Question
from auditspec.recorder.windows import Landing, Window, as_recorded, blameless, land

Load = Callable[[FunctionRef], Callable[..., Any]]
"""Gives a function of the training code."""


class NotLoadedError(EvidenceError):
    """A function of the training code cannot be had in a fresh process."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.message, cause.remedy)
        self.cause = cause


class OtherCodeError(EvidenceError):
    """A name leads to other code than that which trains, so that nothing can be said of the record."""


def imported(ref: FunctionRef) -> Callable[..., Any]:
    """A function, imported by its name.

    Raises:
        NotLoadedError: if it cannot be imported.
        OtherCodeError: if what is imported is not what the record names.
    """
    module_name, _, name = ref.name.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
    except TrainsOnImportError:
        raise NotLoadedError(cause("trains-on-import")) from None
    except (Exception, SystemExit) as error:
        why = f"importing {ref.name} fails: {reason_of(error)}"
        raise NotLoadedError(cause("not-importable", error=why, name=module_name)) from None
    if function_ref(function).digest != ref.digest:
        path = sys.modules[module_name].__file__
        raise OtherCodeError(
            f"{ref.name} is imported from {path}, which is not what the record names: it was edited, or "
            "another module has its name",
            "put the file back, or rename the module",
        )
    return function


def functions_of(
    header: RecordHeader, stages: tuple[StageTrajectory, ...], load: Load
) -> Functions:
    """The training code's functions that re-runs of some stages call.

    Args:
        header: of the record.
        stages: those that are re-run, and those before them.
        load: gives a function.
    """
    headers = [stage.header for stage in stages]
    codes = [h.optimizer_code for h in headers if h.optimizer_code is not None]
    changes = [h.extend for h in headers if h.extend is not None]
    return Functions(
        factory=load(header.factory),
        load_batch=load(header.load_batch),
        objectives={h.id: load(h.objective) for h in headers},
        predict=no_logits,
        optimizers={ref.name: load(ref) for ref in codes},
        extensions={ref.name: load(ref) for ref in changes},
    )


def answer(question: Question, load: Load = imported) -> Answer:
    """Re-run the windows between a question's steps, up to the first that does not hold.

    Args:
        question: what to re-run.
        load: gives a function of the training code.
    """
    try:
        trajectory = Trajectory.open(Path(question.record))
        if full := _too_full(trajectory.header, question):
            return Answer("unchecked", problem=full)
        index = trajectory.index(question.stage)
        with as_recorded(trajectory.header):
            functions = functions_of(trajectory.header, trajectory.stages[: index + 1], load)
            datasets = {
                name: Dataset.open(path, name, question.digests.get(name))
                for name, path in question.datasets.items()
            }
            rerun = Rerun(trajectory, functions, datasets, device=trajectory.header.device)
            windows = windows_of(trajectory.stages[index], question.stop)
            return _answer_of(rerun, windows, question.notes)
    except (Exception, SystemExit) as error:  # whatever the training code raises
        if blameless(error) or isinstance(error, OtherCodeError) or _is_a_bug(error):
            return Answer("unchecked", problem=reason_of(error))
        found = error.cause if isinstance(error, NotLoadedError) else failure(error)
        said = (found.code, found.message, found.remedy)
        return Answer("fails", None, f"stage '{question.stage}'", *said)


@dataclass(frozen=True)
class Checked:
    """What came of one window of a record."""

    window: Window
    landing: Landing
    cause: Cause | None
    """None where it holds."""

    @property
    def deviation(self) -> float:
        """Largest relative deviation; infinite where the window could not be re-run."""
        return math.inf if self.landing.deviation is None else self.landing.deviation.deviation

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        off = self.deviation
        outcome = "fails" if self.cause else "close" if off else "bitwise"
        return {
            "stage": self.window.stage.id,
            "first": self.window.start,
            "last": self.window.stop - 1,
            "outcome": outcome,
            "deviation": off if math.isfinite(off) else None,
            "problem": self.landing.problem,
            "code": self.cause.code if self.cause else "",
            "cause": self.cause.message if self.cause else "",
            "remedy": self.cause.remedy if self.cause else "",
        }


def check_folder(
    folder: Path,
    stage_id: str | None,
    data: Mapping[str, Path],
    *,
    every: bool,
) -> Iterator[Checked]:
    """Re-run the windows of a record on disk, finished or not, with code that can be imported.

    Args:
        folder: the record.
        stage_id: only this stage; None: all.
        data: paths of the data sets, by name.
        every: all windows rather than each stage's first.

    Raises:
        UsageError: if a data set is not given.
        EvidenceError: if record, code, or data cannot be read, or are others.
        EstimationError: if the record holds no steps.
    """
    trajectory = Trajectory.open(folder)
    stages = trajectory.stages
    chosen = stages if stage_id is None else (stages[trajectory.index(stage_id)],)
    if not any(stage.steps for stage in chosen):
        raise EstimationError(f"{folder} holds no steps to re-run", "record with every=N")

    datasets = dict(_datasets(trajectory, data))
    device = trajectory.header.device
    there = torch.device(device).type == "cpu" or torch.cuda.is_available()
    with as_recorded(trajectory.header):
        with _where_nothing_trains():
            functions = functions_of(trajectory.header, stages, imported)
        try:
            rerun = Rerun(trajectory, functions, datasets, device=device if there else "cpu")
        except (Exception, SystemExit) as error:  # whatever the factory raises
            raise NotLoadedError(failure(error)) from None
        for stage in chosen:
            windows = windows_of(stage)
            yield from check_windows(rerun, windows if every else windows[:1], Notes())


@contextmanager
def _where_nothing_trains() -> Iterator[None]:
    """Refuse recorders: a script that trains when it is imported makes one."""
    before = os.environ.get(INSIDE)
    os.environ[INSIDE] = "1"
    try:
        yield
    finally:
        os.environ.pop(INSIDE)
        if before is not None:
            os.environ[INSIDE] = before


def _datasets(trajectory: Trajectory, data: Mapping[str, Path]) -> Iterator[tuple[str, Dataset]]:
    """Data sets that a record names, each with the digest that it names.

    Raises:
        UsageError: if one is not given.
        EvidenceError: if one is missing, or another.
    """
    for stage in trajectory.stages:
        for name, digest in stage.datasets.items():
            if name not in data:
                raise UsageError(
                    f"stage '{stage.id}' was trained on the data set '{name}'",
                    f"say where it is: --data {name}=PATH",
                )
            yield name, Dataset.open(data[name], name, digest)


def windows_of(stage: StageTrajectory, stop: int | None = None) -> list[Window]:
    """The windows of a stage whose steps are on disk.

    Args:
        stage: the record's, finished or not.
        stop: leave out those that end later; None: none.
    """
    last = len(stage.steps) if stop is None else min(stop, len(stage.steps))
    states = [k for k in stage.state_steps if k <= last]
    return [Window(stage, *ends) for ends in itertools.pairwise(states)]


def check_windows(rerun: Engine, windows: Iterable[Window], notes: Notes) -> Iterator[Checked]:
    """Re-run windows, one after another; name the likely cause of each that does not hold.

    Args:
        rerun: of the record.
        windows: which.
        notes: of their steps; empty where nobody saw them.
    """
    for window in windows:
        landing = land(rerun, window)
        yield Checked(window, landing, None if landing.holds else diagnose(rerun, window, notes))


def _answer_of(rerun: Engine, windows: Iterable[Window], notes: Notes) -> Answer:
    worst = 0.0
    for checked in check_windows(rerun, windows, notes):
        worst = max(worst, checked.deviation)
        if checked.cause is not None:
            problem = f"{checked.window.place}: {checked.landing.problem}"
            found = checked.cause
            known = worst if math.isfinite(worst) else None
            return Answer("fails", known, problem, found.code, found.message, found.remedy)
    return Answer("close" if worst else "bitwise", worst)


def _too_full(header: RecordHeader, question: Question) -> str:
    """Why a second copy of the training does not fit beside the first; empty where it does."""
    device = torch.device(header.device)
    if device.type != "cuda":
        return ""
    free = torch.cuda.mem_get_info(device)[0]
    if free >= question.device_memory:
        return ""
    return (
        f"{device} has {free / 1e9:.1f} GB free, and the training beside it reserved "
        f"{question.device_memory / 1e9:.1f} GB"
    )


def _is_a_bug(error: BaseException) -> bool:
    """Whether an error that nobody raised on purpose comes from this package."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(__file__).parents[1] in Path(last).parents
    return ours and not isinstance(error, AuditspecError)


def _end_with(parent: int, folder: Path) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(folder: Path) -> None:
    """Answer the question that lies in a folder."""
    question = Question.read(folder)
    threading.Thread(target=_end_with, args=(question.parent, folder), daemon=True).start()
    with suppress(OSError, AttributeError):  # the training goes first
        os.nice(10)
    sys.path[:] = question.path
    answer(question).write(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
