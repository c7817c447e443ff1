"""Files that training read stand in the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import Mlp, build_mlp, cross_entropy, load_batch, table

from auditspec import Dataset, Recorder
from auditspec.artifacts.scratch import PREFIX
from auditspec.record.trajectory import read_header


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    table().to_parquet(tmp_path / "data.parquet")
    return Recorder(tmp_path / "record", build_mlp(), factory=build_mlp, load_batch=load_batch)


def begin(recorder: Recorder, id_: Any = "one", **options: Any) -> None:
    """A stage of one step."""
    optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
    options.setdefault("dataset", Dataset.open(recorder.folder.parent / "data.parquet"))
    with recorder.stage(id_, optimizer, cross_entropy, steps=1, **options) as run:
        optimizer.zero_grad()
        run.loss([0, 1]).backward()
        optimizer.step()


FROM: dict[str, Path] = {}


def build_from_file() -> nn.Module:
    model = build_mlp()
    model.load_state_dict(torch.load(FROM["weights"]))
    return model


def widen(model: nn.Module) -> None:
    FROM["weights"].with_name("head.txt").read_text()


def recorded_reads(tmp_path: Path, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    FROM["weights"] = tmp_path / "weights.bin"
    torch.save(build_mlp().state_dict(), FROM["weights"])
    table().to_parquet(tmp_path / "data.parquet")
    for name in ("head.txt", "extra.txt", "late.txt"):
        (tmp_path / name).write_text(name)
    folder = tmp_path / "record"
    with Recorder(
        folder, build_from_file(), factory=build_from_file, load_batch=load_batch
    ) as recorder:
        begin(recorder)
        between()
        recorder.extend(widen)
        begin(recorder, "two")
    (tmp_path / "late.txt").read_text()  # after the record is closed
    return {Path(file.path).name: file for file in read_header(folder).reads}


def test_files_that_training_read_are_in_the_record(tmp_path: Path) -> None:
    found = recorded_reads(tmp_path)
    assert set(found) == {"weights.bin", "head.txt"}
    # The changed model is built anew, and both functions name the file.
    assert found["weights.bin"].by == ("factory", "extend", "named")
    assert found["head.txt"].by == ("extend",)
    assert found["weights.bin"].size == FROM["weights"].stat().st_size
    assert found["weights.bin"].digest.startswith("sha256:")


def test_files_that_the_factory_names_are_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    (tmp_path / "data.parquet").rename(tmp_path / "named_by_the_factory.bin")
    monkeypatch.chdir(tmp_path)
    with Recorder("record", build_and_name(), factory=build_and_name):
        pass
    with Recorder("by_class", build_and_name(), factory=Named):
        pass
    for folder in ("record", "by_class"):
        (file,) = read_header(Path(folder)).reads
        assert (file.path, file.by) == ("named_by_the_factory.bin", ("named",))


class Named(Mlp):
    def __init__(self) -> None:
        super().__init__()
        assert Path("named_by_the_factory.bin").exists()
        self.double()


def build_and_name() -> nn.Module:
    assert Path("named_by_the_factory.bin").exists()
    return build_mlp()


def test_a_file_that_goes_before_its_stage_ends_is_named_all_the_same(tmp_path: Path) -> None:
    def between() -> None:
        (tmp_path / "extra.txt").read_text()
        (tmp_path / "extra.txt").unlink()

    found = recorded_reads(tmp_path, between)
    assert set(found) == {"weights.bin", "head.txt", "extra.txt"}
    assert (found["extra.txt"].digest, found["extra.txt"].by) == (None, ("training",))


def test_a_resumed_record_keeps_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    (tmp_path / "notes.txt").write_text("a")
    monkeypatch.chdir(tmp_path)

    def session(text: str, resume: bool) -> None:
        torch.manual_seed(0)
        recorder = Recorder(
            "record", build_mlp(), factory=build_mlp, load_batch=load_batch, resume=resume
        )
        optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
        data = Dataset.open(Path("data.parquet"))
        with recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run:
            for _ in run.steps:
                Path(text).read_text()
                optimizer.zero_grad()
                run.loss([0, 1]).backward()
                optimizer.step()
        if resume:
            recorder.finish()
        else:  # as in a process that is killed in the next stage
            recorder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    session("notes.txt", resume=False)
    session("notes.txt", resume=True)
    header = json.loads(Path("record/record.json").read_text())
    assert [(r["path"], r["by"]) for r in header["reads"]] == [("notes.txt", ["training"])]


def test_what_the_recorder_asks_its_self_check_is_no_file_of_training(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}self-check-1-01234567"
    folder.mkdir()
    for name in ("answer.json", "other.json"):
        (folder / name).write_text("{}")
    (tmp_path / "read.json").write_text("{}")

    def between() -> None:
        (folder / "answer.json").read_text()
        (tmp_path / "read.json").read_text()

    names = [Path(name).name for name in recorded_reads(tmp_path, between)]
    assert "read.json" in names
    assert "answer.json" not in names
