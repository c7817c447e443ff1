"""A run that nobody recorded, trained again by its own code, and recorded meanwhile.

Every checkpoint that the run saved is held against the re-run at its step (`comparison`). Where one lies too far
off, the re-run is another run than the one that was made: the record then holds the boundaries only, with the
states of the saved checkpoints.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.saved import checkpoints_by_step
from auditspec.artifacts.weight_files import fitted
from auditspec.artifacts.weights import read_weights
from auditspec.attempt import reason_of
from auditspec.errors import AuditspecError, EvidenceError, RecordError
from auditspec.importing.comparison import Comparison
from auditspec.record.format import RecordHeader, stage_folder, state_file
from auditspec.record.state import named_parameters, ties
from auditspec.recorder.events import Objective
from auditspec.recorder.recorder import Recorder
from auditspec.recorder.writer import finish_manifest, write_header


@dataclass(frozen=True)
class ImportedStage:
    """A stage of the run."""

    id: str
    objective: Objective
    checkpoints: Path
    """What it saved: a folder, or a file."""
    datasets: tuple[Dataset, ...]
    extend: Any = None
    """The function that changed the model before it, if any."""


@dataclass(frozen=True)
class ImportedRun:
    """What a run was made of: code, data, first weights."""

    factory: Any
    load_batch: Any
    stages: Sequence[ImportedStage]
    train: Callable[[Recorder], Any]
    """Trains the model of a recorder again, and records every stage with it."""
    weights: Path | None = None
    """File or folder of the first weights; None: those that the factory draws."""
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
            tied, names = ties(model), list(named_parameters(model))
            own = [name for name in names if name not in tied.values()]
            weights = fitted(read_weights(self.weights, names=own).tensors, names, tied)
            try:
                odd = model.load_state_dict(weights, strict=False)
            except RuntimeError as error:
                raise _other_weights(str(error).splitlines()[-1].strip()) from None
            twice = {n for n, p in model.state_dict().items() if _stored_twice(model, n, p)}
            if missing := sorted(set(odd.missing_keys) - twice) + odd.unexpected_keys:
                raise _other_weights(", ".join(missing[:3]))
        return model


class BeginAgainError(Exception):
    """What trains a run learned how it is to be recorded: it is to be called once more, from the start."""


def import_run(
    run: ImportedRun, folder: Path, *, every: int, announce: Callable[[str], None]
) -> RecordHeader:
    """Train a run again and write its record.

    Args:
        run: what it was made of.
        folder: of the record, which holds none.
        every: steps between recorded states.
        announce: told of every checkpoint once it was compared.

    Returns:
        The record's header: `regenerated` says how close each saved checkpoint was met. It holds the
        boundaries only if one was missed.

    Raises:
        EvidenceError: if a checkpoint cannot be read, is of another model, or is not reached.
        RecordError: if the run cannot be recorded, or the code that trains fails.
    """
    while True:
        stored = {stage.id: checkpoints_by_step(stage.checkpoints) for stage in run.stages}
        comparison = Comparison(stored, announce)
        try:
            with _blamed("training again"):
                recorder = _recorded(run, folder, every, comparison)
            break
        except BeginAgainError:
            shutil.rmtree(folder)
    regenerated = comparison.regenerated
    changes: dict[str, Any] = {"regenerated": regenerated}
    if regenerated.missed:
        _leave_boundaries(folder, recorder.header)
        changes["every"] = "boundaries"
    header = recorder.header.model_copy(update=changes)
    write_header(folder, header)
    finish_manifest(folder)
    return header


def _recorded(run: ImportedRun, folder: Path, every: int, comparison: Comparison) -> Recorder:
    """Train, record, and compare."""
    recorder = Recorder(
        folder,
        run.model(),
        factory=run.factory,
        load_batch=run.load_batch,
        every=every,
        self_check=False,  # it would import the code from the disk, not from the bundle
    )
    with recorder:
        recorder.reproduction = comparison
        run.train(recorder)
        comparison.finish()
    return recorder


@contextmanager
def _blamed(doing: str) -> Iterator[None]:
    """Say of an error where in the audited code it was raised.

    Raises:
        RecordError: in its place.
    """
    try:
        yield
    except (AuditspecError, BeginAgainError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # Lightning makes an exit of it
        raise RecordError(
            f"{doing} failed: {reason_of(error)}",
            "give the code that trained, and whatever it reads",
        ) from None


def _leave_boundaries(folder: Path, header: RecordHeader) -> None:
    """Delete what a record holds between the ends of its stages."""
    for index, stage in enumerate(header.stages):
        ends = {state_file(0), state_file(stage.steps)}
        for path in (folder / stage_folder(index, stage.id)).iterdir():
            if path.name not in ends:
                path.unlink()


def _stored_twice(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether a tensor goes by another name too, under which a file may hold it."""
    others = (t for n, t in model.state_dict().items() if n != name)
    return any(t.data_ptr() == tensor.data_ptr() and t.numel() for t in others)


def _other_weights(what: str) -> EvidenceError:
    return EvidenceError(
        f"the first weights are not those of the model: {what}",
        "give the weights with which the first stage began, and the code that builds their model",
    )
