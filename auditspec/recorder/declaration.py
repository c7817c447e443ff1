"""A stage as the training script declares it, and the header that the record gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.describe import function_ref
from auditspec.record.describe_optimizer import (
    groups_of,
    optimizer_code,
    refuse_hidden_options,
    refuse_stale_gradients,
)
from auditspec.record.format import RecordHeader, StageHeader
from auditspec.record.state import State, frozen_in
from auditspec.recorder.events import Objective
from auditspec.recorder.joins import ModelChange, architecture, boundary, refuse_other_data
from auditspec.recorder.states import States


@dataclass(frozen=True)
class DeclaredStage:
    """The arguments of `Recorder.stage`."""

    stage_id: str
    optimizer: Optimizer
    objective: Objective
    steps: int
    dataset: Dataset | Sequence[Dataset]
    clip_norm: float | None


@dataclass(frozen=True)
class Before:
    """What a stage begins with."""

    record: RecordHeader
    index: int
    """Of the stage."""
    last: State | None
    """With which the stage before ended."""
    change: ModelChange | None
    """Of the model, since then."""
    states: States
    """Of the model and the stage's optimizer."""


def stage_header(
    declared: DeclaredStage, model: nn.Module, datasets: Mapping[str, Dataset], before: Before
) -> StageHeader:
    """The header of a stage that is about to begin; of a resumed one, with what its record has read off the run.

    Raises:
        RecordError: if the stage cannot be recorded.
    """
    optimizer, stages = declared.optimizer, before.record.stages
    recorded = stages[before.index] if before.index < len(stages) else None
    code = optimizer_code(optimizer)
    groups = tuple(groups_of(model, optimizer))
    words = architecture(model, before.record, before.index, before.change)
    refuse_stale_gradients(model, optimizer, declared.clip_norm)
    if code is not None:
        refuse_hidden_options(optimizer)
    refuse_other_data(declared.stage_id, datasets, before.change)
    return StageHeader(
        id=declared.stage_id,
        objective=function_ref(declared.objective),
        **words,
        optimizer=code.name if code else type(optimizer).__name__,
        optimizer_code=code,
        groups=recorded.groups if recorded else groups,
        boundary=recorded.boundary
        if recorded
        else boundary(before.states, before.last, before.change),
        frozen=frozen_in(model),
        autocast=recorded.autocast if recorded else None,
        clip_norm=declared.clip_norm,
        datasets={name: data.digest for name, data in datasets.items()},
        steps=declared.steps,
    )


def refuse_another_stage(recorded: StageHeader, declared: StageHeader, folder: Path) -> None:
    """Refuse to go on with a recorded stage as another one.

    Raises:
        RecordError: if they differ.
    """
    planned = {
        "complete": False,
        "steps": recorded.steps + recorded.skipped,
        "skipped": 0,
        "self_check": None,
    }
    if recorded.model_copy(update=planned) != declared:
        raise RecordError(
            f"stage '{declared.id}' is not the stage '{recorded.id}' that {folder} records",
            "resume with the same stages, data, and options, or start a new record",
        )
