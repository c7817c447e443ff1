"""Committing to a stage: what it will be, read off the model and the optimizer right before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from auditspec.artifacts.manifest import digest_path
from auditspec.record.describe import named_datasets
from auditspec.record.format import stage_folder
from auditspec.record.plan import Plan
from auditspec.record.state import device_of, random_state
from auditspec.record.trajectory import StageTrajectory
from auditspec.recorder.committed import CommittedStage
from auditspec.recorder.declaration import Before, DeclaredStage, stage_header


def commit(
    declared: DeclaredStage, plan: Plan, code: Path, model: nn.Module, before: Before, folder: Path
) -> CommittedStage:
    """Commit to a stage.

    Args:
        declared: the stage.
        plan: its steps.
        code: the file or folder of its code.
        model: as it is now.
        before: what the stage begins with.
        folder: of the record.

    Raises:
        RecordError: if the stage cannot be recorded, or the plan is none of rows.
        EvidenceError: if the code cannot be read.
    """
    header = stage_header(declared, model, named_datasets(declared.dataset), before)
    if before.index < len(before.record.stages):  # goes on; what it began with was recorded
        recorded = folder / stage_folder(before.index, header.id)
        first = StageTrajectory(recorded, header, before.record).first
    else:
        first = replace(before.states.now(), rng=random_state(device_of(model)))
    return CommittedStage.of(header, first, plan, digest_path(code).digest)
