"""An interrupted run goes on where its record ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    SGD3,
    StagePlan,
    build_dropped,
    build_tied,
    parameters,
    relative,
    train,
)

from auditspec.errors import RecordError
from auditspec.record.state import deviation
from auditspec.record.trajectory import Trajectory

MIXED = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.01}, steps=7, microbatches=2),
    StagePlan("two", split=True, shift=1, clip_norm=0.3, steps=5),
    StagePlan("three", split=True, shift=2, carry=True, steps=60),
)


@pytest.mark.parametrize("stage", ["one", "two", "three"])
@pytest.mark.parametrize("step", [0, 3, 53])
@pytest.mark.parametrize("every", [1, 2, "boundaries"])
def test_an_interrupted_run_resumes_to_the_same_end(
    tmp_path: Path, stage: str, step: int, every: Any
) -> None:
    if step >= {"one": 7, "two": 5, "three": 60}[stage]:
        pytest.skip("the stage is shorter")
    whole = train(tmp_path / "whole", MIXED, build_dropped, every)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", MIXED, build_dropped, every, stop_at=(stage, step))
    Trajectory.open(tmp_path / "cut" / "record")  # what was written is readable
    again = train(tmp_path / "cut", MIXED, build_dropped, every, resume=True, seed=99)
    assert all(
        torch.equal(p, parameters(whole.model)[n]) for n, p in parameters(again.model).items()
    )
    rerun = again.rerun()
    for part, start, stop in again.trajectory.windows():
        if every != "boundaries":
            assert deviation(rerun.run(part, part.state(start), start, stop), part.state(stop)) == 0


def test_resuming_a_finished_record_gives_the_trained_model(tmp_path: Path) -> None:
    first = train(tmp_path, SGD3)
    again = train(tmp_path, SGD3, resume=True, seed=5)
    assert relative(parameters(again.model), parameters(first.model)) == 0


def test_a_folder_with_a_record_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    with pytest.raises(RecordError, match="holds a record already") as error:
        train(tmp_path, SGD3)
    assert "resume=True" in error.value.remedy


def test_resuming_with_other_stages_is_refused(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    changed = (StagePlan("one", steps=7), *SGD3[1:])
    with pytest.raises(RecordError, match="is not the stage 'one'"):
        train(tmp_path, changed, resume=True)
    with pytest.raises(RecordError, match="stage 'three' of the record was not run again"):
        train(tmp_path, SGD3[:2], resume=True)
    with pytest.raises(RecordError, match="another factory"):
        train(tmp_path, SGD3, build_tied, resume=True)
