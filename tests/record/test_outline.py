"""A record read without its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import SGD3, StagePlan, train

from auditspec.errors import RecordError
from auditspec.record.outline import read_header, read_outline

PLAN = (*SGD3[:2], StagePlan("three", split=True, microbatches=2, steps=53, shift=2))


def test_the_outline_says_what_the_trajectory_says(tmp_path: Path) -> None:
    recorded = train(tmp_path, PLAN, every=5)
    header = read_header(tmp_path / "record")
    for stage in recorded.trajectory.stages:
        outline = read_outline(tmp_path / "record", header, stage.header)
        assert outline.header == stage.header
        assert [step.groups for step in outline.steps] == [step.groups for step in stage.steps]
        assert [[b.dataset for b in step.batches] for step in outline.steps] == [
            [b.dataset for b in step.batches] for step in stage.steps
        ]


def test_boundaries_alone_have_no_steps(tmp_path: Path) -> None:
    train(tmp_path, PLAN[:1], every="boundaries")
    header = read_header(tmp_path / "record")
    assert read_outline(tmp_path / "record", header, header.stages[0]).steps == ()


def test_missing_and_broken_parts_are_told(tmp_path: Path) -> None:
    train(tmp_path, PLAN, every=5)
    header = read_header(tmp_path / "record")
    part = tmp_path / "record" / "02-three" / "steps-000050.parquet"
    part.write_bytes(b"no table")
    with pytest.raises(RecordError, match=r"steps-000050\.parquet: cannot be read"):
        read_outline(tmp_path / "record", header, header.stages[2])
    part.unlink()
    with pytest.raises(RecordError, match="50 of 53 steps are recorded"):
        read_outline(tmp_path / "record", header, header.stages[2])
