"""What a run is made of, in the words of a record; what has no words is refused."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from training import build_mlp, cross_entropy, load_batch, table

from auditspec import Dataset, Recorder
from auditspec.artifacts.digest import digest_file
from auditspec.errors import RecordError
from auditspec.record.describe import function_ref, row_numbers
from auditspec.record.format import FunctionRef


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


def test_data_sets_of_a_stage_have_names_of_their_own(recorder: Recorder) -> None:
    data = Dataset.open(recorder.folder.parent / "data.parquet")
    with pytest.raises(RecordError, match="two data sets of the stage have one name"):
        begin(recorder, dataset=[data, data])


@pytest.mark.parametrize("name", ["my data", "record", "code", ".data"])
def test_names_of_data_sets_that_no_spec_can_use_are_refused(recorder: Recorder, name: str) -> None:
    data = Dataset.open(recorder.folder.parent / "data.parquet", name)
    with pytest.raises(RecordError, match="no name of a data set") as error:
        begin(recorder, dataset=data)
    assert "name=" in error.value.remedy


@pytest.mark.parametrize(
    "ids", [[0, 2], (0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2])]
)
def test_row_numbers_of_any_kind_are_taken(ids: Any) -> None:
    assert row_numbers(ids) == [0, 2]
    assert row_numbers([np.int64(0), torch.tensor(2)]) == [0, 2]


def test_a_decorated_function_of_a_script_is_named_by_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decorator's file is another one; `python train.py` runs the script as `__main__`."""
    script = tmp_path / "train.py"
    script.write_text("def loss(model, batch): ...")
    module = ModuleType("__main__")
    module.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(script.read_text(), script, "exec"), vars(module))
    inner = vars(module)["loss"]

    @functools.wraps(inner)
    def decorated(*args: Any) -> Any:
        return inner(*args)

    assert function_ref(decorated) == FunctionRef(name="train:loss", digest=digest_file(script)[0])


@pytest.mark.parametrize(
    ("file", "extra", "where"),
    [
        ("<stdin>", {"__file__": "<stdin>"}, "on standard input"),
        ("<string>", {}, "in a string"),
        ("/tmp/ipykernel_7/1.py", {"get_ipython": len}, "in a notebook"),
        ("<ipython-input-1>", {"get_ipython": len}, "in IPython"),
        ("<python-input-0>", {}, "in an interactive session"),
    ],
)
def test_a_function_that_no_audit_could_import_says_what_to_do(
    file: str, extra: dict[str, object], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    vars(main).update(extra)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if where == "in a notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    exec(compile("def build_model(): ...\nclass Net: ...", file, "exec"), vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(RecordError, match=f"build_model is defined {re.escape(where)}") as refused:
        function_ref(main.build_model)
    assert "%%writefile training_code.py" in refused.value.remedy
    assert "from training_code import build_model" in refused.value.remedy
    with pytest.raises(RecordError, match="Net is defined"):
        function_ref(main.Net)
