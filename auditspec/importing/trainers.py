"""Stages whose objectives build their trainers (`trainer_objective`): trained again without a script."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from auditspec.importing.trained_again import ImportedStage
from auditspec.integrations.hf_hearing import OtherRowsError
from auditspec.integrations.transformers import record
from auditspec.recorder.recorder import Recorder


def train_by_trainers(stages: Sequence[ImportedStage], recorder: Recorder) -> None:
    """Train every stage by the trainer that its objective builds.

    Raises:
        RecordError: if an objective builds none, or the run cannot be recorded.
    """
    for stage in stages:
        if stage.extend is not None:
            recorder.extend(stage.extend)
        with ExitStack() as recording:
            _recorded(recorder, stage, recording).train()


def _recorded(recorder: Recorder, stage: ImportedStage, recording: ExitStack) -> Any:
    """The stage's trainer, recorded with its rows where those are the rows of its one data set."""
    if len(stage.datasets) == 1:
        with suppress(OtherRowsError):
            rows = record(recorder, stage.id, stage.objective, dataset=stage.datasets[0])
            return recording.enter_context(rows)
    whole = record(recorder, stage.id, stage.objective, dataset=stage.datasets)
    return recording.enter_context(whole)
