"""The batches that a re-run loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import build_mlp, load_batch, predict, table

from auditspec import Dataset
from auditspec.engine.loading import Functions, load_microbatch, load_rows
from auditspec.errors import EstimationError, RecordError
from auditspec.record.trajectory import Microbatch

FUNCTIONS = Functions(build_mlp, load_batch, {}, predict)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    table().to_parquet(tmp_path / "data.parquet")
    return Dataset.open(tmp_path / "data.parquet")


def test_rows_are_loaded_by_the_training_code(data: Dataset) -> None:
    x, _, y = load_microbatch(FUNCTIONS, {"data": data}, Microbatch("data", (3, 1), 1.0, {}))
    wanted = load_batch(data, [3, 1])
    assert torch.equal(x, wanted[0])
    assert torch.equal(y, wanted[2])


def test_rows_of_reference_data_take_the_place_of_the_records(
    data: Dataset, tmp_path: Path
) -> None:
    table(1).to_parquet(tmp_path / "clean.parquet")
    clean = Dataset.open(tmp_path / "clean.parquet")
    microbatch = Microbatch("data", (3, 1), 1.0, {}, source=clean)
    x, _, _ = load_microbatch(FUNCTIONS, {"data": data}, microbatch)
    assert torch.equal(x, load_batch(clean, [3, 1])[0])


def test_reference_rows_come_with_the_counts_of_the_recorded_batch(data: Dataset) -> None:
    """A trainer divides by what it counted over the whole step: no row tells that."""
    functions = Functions(build_mlp, lambda *given: {"x": load_batch(*given)[0]}, {}, predict)
    recorded = {"x": torch.zeros(2, 4), "mask": torch.ones(2), "items": torch.tensor(7), "n": 3}
    microbatch = Microbatch("data", (3, 1), 1.0, {}, recorded, source=data)
    batch = load_microbatch(functions, {}, microbatch)
    assert torch.equal(batch["x"], load_batch(data, [3, 1])[0])
    assert {key: int(value) for key, value in batch.items() if key != "x"} == {"items": 7, "n": 3}


def test_a_batch_of_the_record_is_given_as_it_was_recorded() -> None:
    """One tensor alone, several as a tuple; copies, since the training code may work in place."""
    one, two = torch.ones(2), torch.zeros(3)
    alone = load_microbatch(FUNCTIONS, {}, Microbatch(None, (), 1.0, {}, one))
    assert torch.equal(alone, one)
    assert alone is not one
    several = load_microbatch(FUNCTIONS, {}, Microbatch(None, (), 1.0, {}, (one, two)))
    assert isinstance(several, tuple)
    assert [len(t) for t in several] == [2, 3]


def test_a_data_set_that_is_not_at_hand_is_named() -> None:
    with pytest.raises(EstimationError, match="data set 'data' is not among the artifacts"):
        load_microbatch(FUNCTIONS, {}, Microbatch("data", (0,), 1.0, {}))


def test_rows_that_a_table_does_not_have_are_told(data: Dataset) -> None:
    with pytest.raises(RecordError, match="row 99 of data set 'data' is to be read, which has 48"):
        load_rows(FUNCTIONS, data, [0, 99])


def test_another_failure_of_the_training_code_stays_what_it_was(data: Dataset) -> None:
    def broken(dataset: Dataset, ids: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        load_rows(Functions(build_mlp, broken, {}, predict), data, [0])
