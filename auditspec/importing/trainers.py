"""Stages whose objectives build their trainers (`trainer_objective`): trained again without a script."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from auditspec.importing.trained_again import BeginAgainError, ImportedStage
from auditspec.integrations.first_batch import OtherRowsError
from auditspec.integrations.transformers import record
from auditspec.recorder.recorder import Recorder


class Trainers:
    """Trains every stage by the trainer that its objective builds.

    Args:
        stages: of the run.
    """

    def __init__(self, stages: Sequence[ImportedStage]) -> None:
        self._stages = stages
        self._unnumbered: set[str] = set()
        """Stages whose examples are not the rows of their data, as their first batch showed."""

    def __call__(self, recorder: Recorder) -> None:
        """Train.

        Raises:
            RecordError: if an objective builds no trainer, or the run cannot be recorded.
            BeginAgainError: if a stage is to be recorded without row numbers from now on.
        """
        for stage in self._stages:
            if stage.extend is not None:
                recorder.extend(stage.extend)
            with ExitStack() as recording:
                trainer = self._recorded(recorder, stage, recording)
                try:
                    trainer.train()
                except OtherRowsError:
                    self._unnumbered.add(stage.id)
                    raise BeginAgainError from None

    def _recorded(self, recorder: Recorder, stage: ImportedStage, recording: ExitStack) -> Any:
        """The stage's trainer, recorded with its rows where those are the rows of its one data set."""
        if stage.id not in self._unnumbered and len(stage.datasets) == 1:
            with suppress(OtherRowsError):
                rows = record(recorder, stage.id, stage.objective, dataset=stage.datasets[0])
                return recording.enter_context(rows)
        whole = record(recorder, stage.id, stage.objective, dataset=stage.datasets)
        return recording.enter_context(whole)
