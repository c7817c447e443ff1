"""The files of a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training import (
    SGD3,
    train,
)

from auditspec.artifacts.manifest import Manifest


@pytest.mark.parametrize(
    ("every", "kept"),
    [(1, list(range(7))), (4, [0, 4, 6]), (50, [0, 6]), ("boundaries", [0, 6])],
)
def test_states_are_kept_where_asked(tmp_path: Path, every: Any, kept: list[int]) -> None:
    recorded = train(tmp_path, SGD3, every=every)
    stage = recorded.trajectory.stages[1]
    assert list(stage.state_steps) == kept
    assert len(stage.steps) == (0 if every == "boundaries" else 6)
    grade = {1: "dense", "boundaries": "boundaries"}.get(every, "sparse")
    assert recorded.trajectory.grade == grade


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    train(tmp_path, SGD3)
    folder = tmp_path / "record"
    listed = Manifest.decode((folder / "manifest.json").read_bytes())
    assert not listed.differences(Manifest.scan(folder).without("manifest.json"))
    (folder / "00-one" / "state-000002.safetensors").write_bytes(b"x")
    changed = listed.differences(Manifest.scan(folder).without("manifest.json"))
    assert changed.changed == ("00-one/state-000002.safetensors",)


def test_a_failing_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import auditspec.recorder.writer as writer

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, SGD3)
    assert not json.loads((tmp_path / "record" / "record.json").read_text())["complete"]
