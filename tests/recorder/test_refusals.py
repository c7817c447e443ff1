"""What is refused before it is recorded, and the files that training read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training import Mlp, build_mlp, cross_entropy, load_batch, table

from auditspec import Dataset, Recorder
from auditspec.errors import RecordError
from auditspec.record.describe import row_numbers
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


@pytest.mark.parametrize("id_", ["My Stage 1", "", "-one", "a/b", "one\n", "ä", "x" * 65, 1, None])
def test_ids_that_no_spec_can_name_are_refused(recorder: Recorder, id_: Any) -> None:
    with pytest.raises(RecordError, match="is no id of a stage") as error:
        begin(recorder, id_)
    assert "letters" in error.value.remedy
    assert not recorder.header.stages


def test_an_id_stands_once(recorder: Recorder) -> None:
    begin(recorder, "pretrain")
    with pytest.raises(RecordError, match="a stage 'pretrain' already") as error:
        begin(recorder, "pretrain")
    assert error.value.remedy
    begin(recorder, "pretrain-2")
    assert [stage.id for stage in recorder.header.stages] == ["pretrain", "pretrain-2"]


@pytest.mark.parametrize(
    ("given", "said", "remedy"),
    [
        ("data.parquet", "a str is no data set", "Dataset.open('data.parquet')"),
        (Path("data.parquet"), "Path is no data set", "Dataset.open('data.parquet')"),
        (table(), "a DataFrame is no data set", "to_parquet"),
        (torch.utils.data.TensorDataset(torch.ones(2)), "a TensorDataset is", "run.batch(tensors="),
        (["data.parquet"], "a str is no data set", "Dataset.open('data.parquet')"),
        (None, "a NoneType is no data set", "Dataset.open(file)"),
        (torch.ones(2), "a Tensor is no data set", "run.batch(tensors="),
    ],
)
def test_what_is_no_data_set_is_refused_with_the_way_to_one(
    recorder: Recorder, given: Any, said: str, remedy: str
) -> None:
    with pytest.raises(RecordError, match=said) as error:
        begin(recorder, dataset=given)
    assert remedy in error.value.remedy


@pytest.mark.parametrize("name", ["my data", "record", "code", ".data"])
def test_names_of_data_sets_that_no_spec_can_use_are_refused(recorder: Recorder, name: str) -> None:
    data = Dataset.open(recorder.folder.parent / "data.parquet", name)
    with pytest.raises(RecordError, match="no name of a data set") as error:
        begin(recorder, dataset=data)
    assert "name=" in error.value.remedy


X, Y = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        X,
        {"x": X},
        "0 1",
        X[0],
        [0.0, 1.0],
        [True, False],
        torch.tensor(3),
        np.ones((2, 2), dtype=int),
        (i for i in range(3)),
        5,
        table(),
    ],
    ids=lambda batch: type(batch).__name__,
)
@pytest.mark.parametrize("declare", ["loss", "batch"])
def test_a_batch_in_the_place_of_its_ids_is_refused(
    recorder: Recorder, batch: Any, declare: str
) -> None:
    optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
    data = Dataset.open(recorder.folder.parent / "data.parquet")
    with (
        pytest.raises(RecordError, match="is no list of row numbers") as error,
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run,
    ):
        getattr(run, declare)(batch)
    assert "run.batch(tensors=batch)" in error.value.remedy


@pytest.mark.parametrize(
    "ids", [[0, 2], (0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2])]
)
def test_row_numbers_of_any_kind_are_taken(ids: Any) -> None:
    assert row_numbers(ids) == [0, 2]
    assert row_numbers([np.int64(0), torch.tensor(2)]) == [0, 2]


@pytest.mark.parametrize("other", ["data.parquet", table(), "data"])
def test_another_data_set_of_a_batch_must_be_one_of_the_stage(
    recorder: Recorder, other: Any
) -> None:
    optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
    data = Dataset.open(recorder.folder.parent / "data.parquet")
    with (
        pytest.raises(RecordError, match="a data set that the stage names"),
        recorder.stage("one", optimizer, cross_entropy, steps=1, dataset=data) as run,
    ):
        run.loss([0, 1], dataset=other)


# --- files that are read ------------------------------------------------------------------------

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
