"""A run that nobody recorded, trained again by its own code, and recorded meanwhile.

Every checkpoint that the run saved is held against the re-run at its step, bit by bit and by its relative
deviation. Where one lies too far off, the re-run is another run than the one that was made: a record of the
boundaries is then written from the checkpoints themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.saved import (
    SavedCheckpoint,
    read_saved_checkpoint,
    saved_checkpoints,
    step_of,
)
from auditspec.errors import EvidenceError
from auditspec.importing.comparison import compared, other_arguments, state_of
from auditspec.integrations.first_batch import OtherRowsError
from auditspec.integrations.hf_rebuilt import nothing_saved
from auditspec.integrations.model_attributes import Attributes
from auditspec.integrations.transformers import builder_of, record
from auditspec.record.format import CheckpointMatch, RecordHeader, Regenerated
from auditspec.record.state import State, capture, restore
from auditspec.record.trajectory import Microbatch
from auditspec.recorder.events import Objective, OpenStage, Pass, Source, StepMade
from auditspec.recorder.recorder import Recorder
from auditspec.recorder.writer import finish_manifest, write_header

DEVIATION = 1e-4
"""Largest relative deviation of a checkpoint's weights that passes for another rounding of the same run."""


@dataclass(frozen=True)
class ImportedStage:
    """A stage of the run."""

    id: str
    objective: Objective
    """Made by `trainer_objective`: builds the trainer that trained."""
    checkpoints: Path
    """The trainer's output folder."""
    datasets: tuple[Dataset, ...]
    extend: Any = None
    """The function that changed the model before it, if any."""


@dataclass(frozen=True)
class ImportedRun:
    """What a run was made of: code, data, first weights."""

    factory: Any
    load_batch: Any
    stages: Sequence[ImportedStage]
    weights: Mapping[str, Tensor] | None = None
    """First weights, under the model's names; None: those that the factory draws."""
    seed: int | None = None
    """Of the factory's draws."""

    def model(self) -> nn.Module:
        """The model as the first stage found it.

        Raises:
            EvidenceError: if the given weights are those of another model.
        """
        if self.seed is not None:
            torch.manual_seed(self.seed)
        model: nn.Module = self.factory()
        if self.weights is not None:
            try:
                odd = model.load_state_dict(dict(self.weights), strict=False)
            except RuntimeError as error:
                raise _other_weights(str(error).splitlines()[-1].strip()) from None
            tied = {n for n, p in model.state_dict().items() if _stored_twice(model, n, p)}
            if missing := sorted(set(odd.missing_keys) - tied) + odd.unexpected_keys:
                raise _other_weights(", ".join(missing[:3]))
        return model


def import_run(run: ImportedRun, folder: Path, *, every: int = 1) -> RecordHeader:
    """Train a run again and write its record.

    Args:
        run: what it was made of.
        folder: of the record, which must not be there.
        every: steps between recorded states.

    Returns:
        The record's header: `regenerated` says how close each saved checkpoint was met. It holds the
        boundaries only if one was missed.

    Raises:
        EvidenceError: if a checkpoint cannot be read, or is of another model.
        RecordError: if the run cannot be recorded.
    """
    return _made_again(run, folder, every, frozenset())


def _made_again(
    run: ImportedRun, folder: Path, every: int, unnumbered: frozenset[str]
) -> RecordHeader:
    """Make the record, without row numbers in some stages; once more where those of another are wrong."""
    met = _Met(unnumbered)
    try:
        return _dense(run, folder, every, met)
    except _UnnumberedError as error:
        shutil.rmtree(folder)
        return _made_again(run, folder, every, unnumbered | {error.stage})
    except _MissedError:
        shutil.rmtree(folder)
        return _boundaries(run, folder, met)


class _MissedError(Exception):
    """The re-run is not the run that saved the checkpoints."""


class _UnnumberedError(Exception):
    """The examples of a stage are not the rows of its data, as its first batch shows."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@dataclass
class _Met:
    """What was learned of the run and its saved checkpoints."""

    unnumbered: frozenset[str] = frozenset()
    """Stages whose examples are not the rows of their data."""
    matches: list[CheckpointMatch] = field(default_factory=list)
    arguments: set[str] = field(default_factory=set)


# --- trained again --------------------------------------------------------------------------------


def _dense(run: ImportedRun, folder: Path, every: int, met: _Met) -> RecordHeader:
    model = run.model()
    with _recorder(run, model, folder, every) as recorder:
        for stage in run.stages:
            _extend(recorder, stage)
            with nothing_saved(), ExitStack() as recording:
                trainer = _recorded(recorder, stage, recording, stage.id not in met.unnumbered)
                _Comparing(stage, trainer, met).listen()
                try:
                    trainer.train()
                except OtherRowsError:
                    raise _UnnumberedError(stage.id) from None
    return _noted(folder, recorder, met)


def _recorded(
    recorder: Recorder, stage: ImportedStage, recording: ExitStack, numbered: bool
) -> Any:
    """The stage's trainer, recorded with its rows where those are the rows of its one data set."""
    if numbered and len(stage.datasets) == 1:
        with suppress(OtherRowsError):
            rows = record(recorder, stage.id, stage.objective, dataset=stage.datasets[0])
            return recording.enter_context(rows)
    whole = record(recorder, stage.id, stage.objective, dataset=stage.datasets)
    return recording.enter_context(whole)


class _Comparing:
    """Compares where the trainer would save: at the same moment, with the same random numbers drawn."""

    def __init__(self, stage: ImportedStage, trainer: Any, met: _Met) -> None:
        self._stage = stage
        self._trainer = trainer
        self._matches = met.matches
        self._arguments = met.arguments
        self._open = _by_step(stage)

    def listen(self) -> None:
        """Take the place of what would save; report to no service, and print nothing."""
        for callback in [*self._trainer.callback_handler.callbacks]:
            reports = type(callback).__module__.startswith("transformers.integrations")
            if reports or isinstance(callback, PrinterCallback | ProgressCallback):
                self._trainer.remove_callback(callback)
        self._trainer._save_checkpoint = lambda *args, **options: self._compare()
        self._trainer.train = partial(self._train, self._trainer.train)

    def _train(self, train: Any) -> None:
        train()
        if self._open:
            step, path = min(self._open.items())
            raise EvidenceError(
                f"{path}: the run made again saves nothing at step {step} of stage '{self._stage.id}'",
                "let the stage's objective build the trainer with the arguments of the run",
            )

    def _compare(self) -> None:
        step = self._trainer.state.global_step
        if (path := self._open.pop(step, None)) is None:
            return
        model, optimizer = self._trainer.model, self._trainer.optimizer.optimizer
        saved = read_saved_checkpoint(path)
        self._matches.append(compared(self._stage.id, step, saved, model, optimizer))
        self._arguments.update(other_arguments(saved, self._trainer.args))
        weights = self._matches[-1].weights
        if weights is None or weights > DEVIATION:
            raise _MissedError


# --- boundaries only ------------------------------------------------------------------------------


class _Boundaries(Source):
    """Tells of the steps that a stage made, without their batches: a record of boundaries holds none."""

    def attach(self) -> None:
        """Nothing to hear."""

    def detach(self) -> None:
        """Nothing was heard."""

    def end_in(self, state: State) -> None:
        """Let the stage end in a state."""
        stage: OpenStage = self.stage
        for step in self.steps:
            if step == self.steps[-1]:
                restore(state, stage.model, stage.optimizer)
            groups = tuple(dict(group.options) for group in stage.header.groups)
            stage.tell(StepMade((Pass(Microbatch(None, (), 1.0, {}, torch.zeros(1))),), groups))


def _boundaries(run: ImportedRun, folder: Path, met: _Met) -> RecordHeader:
    model = run.model()
    with _recorder(run, model, folder, "boundaries") as recorder:
        for stage in run.stages:
            _extend(recorder, stage)
            step, path = max(_by_step(stage).items())
            optimizer = _optimizer(stage, recorder.model.train())
            with recorder.stage(
                stage.id,
                optimizer,
                stage.objective,
                steps=step,
                dataset=stage.datasets,
                source=_Boundaries,
            ) as boundaries:
                boundaries.end_in(_last(read_saved_checkpoint(path), recorder.model, optimizer))
    return _noted(folder, recorder, met)


def _optimizer(stage: ImportedStage, model: nn.Module) -> Any:
    """The optimizer that the stage's trainer makes."""
    attributes = Attributes(model)
    try:
        with nothing_saved():
            trainer = builder_of(stage.objective)(model)
            trainer.create_optimizer()
    finally:
        attributes.restore()
    return trainer.optimizer


def _last(saved: SavedCheckpoint, model: nn.Module, optimizer: Any) -> State:
    """A saved checkpoint as a whole state; what it does not hold was not trained, and is as it was."""
    held, given = capture(model, optimizer), state_of(saved, model, optimizer)
    return State(
        held.parameters | given.parameters, held.buffers | given.buffers, given.optimizer_state
    )


# --- both -----------------------------------------------------------------------------------------


def _recorder(run: ImportedRun, model: nn.Module, folder: Path, every: Any) -> Recorder:
    return Recorder(
        folder,
        model,
        factory=run.factory,
        load_batch=run.load_batch,
        every=every,
        self_check=False,  # it would import the code from the disk, not from the bundle
    )


def _extend(recorder: Recorder, stage: ImportedStage) -> None:
    if stage.extend is not None:
        recorder.extend(stage.extend)


def _noted(folder: Path, recorder: Recorder, met: _Met) -> RecordHeader:
    """Write down how the checkpoints were met, into a record that is finished."""
    regenerated = Regenerated(
        checkpoints=tuple(met.matches), arguments=tuple(sorted(met.arguments))
    )
    header = recorder.header.model_copy(update={"regenerated": regenerated})
    write_header(folder, header)
    finish_manifest(folder)
    return header


def _by_step(stage: ImportedStage) -> dict[int, Path]:
    """The stage's saved checkpoints by step.

    Raises:
        EvidenceError: if there are none, or two of one step.
    """
    paths: dict[int, Path] = {}
    for path in saved_checkpoints(stage.checkpoints):
        step = step_of(path)
        if step is None or step in paths:
            raise EvidenceError(
                f"{path}: {'says no step' if step is None else f'a second checkpoint of step {step}'}",
                "name an output folder with the checkpoints of one stage",
            )
        paths[step] = path
    return paths


def _stored_twice(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a tensor goes by another name too, under which a file may hold it."""
    others = (t for n, t in model.state_dict().items() if n != name)
    return any(t.data_ptr() == tensor.data_ptr() and t.numel() for t in others)


def _other_weights(what: str) -> EvidenceError:
    return EvidenceError(
        f"the first weights are not those of the model: {what}",
        "give the weights with which the first stage began, and the code that builds their model",
    )
