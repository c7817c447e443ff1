"""The first batch of a stage is held against the rows that it is said to hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from training import table

from auditspec import Dataset
from auditspec.integrations.first_batch import OtherRowsError, refuse_other_rows


def load(dataset: Dataset, ids: Sequence[int]) -> Any:
    torch.rand(3)
    if 99 in ids:
        raise KeyError("pixels")
    return list(ids)


def same(batch: Any, load_batch: Any, data: Dataset, ids: Sequence[int]) -> bool:
    return bool(batch == load_batch(data, ids))


def test_other_rows_are_refused_and_no_random_number_is_used_up(tmp_path: Path) -> None:
    table().to_parquet(tmp_path / "data.parquet")
    data = Dataset.open(tmp_path / "data.parquet")
    before = torch.get_rng_state()
    refuse_other_rows([4, 5], load, data, [4, 5], same, "look")
    for ids, said in (([5, 4], "another batch of rows 5, 4, …"), ([99], "fails on rows 99, …")):
        with pytest.raises(OtherRowsError, match=f"{said} of 'data'") as error:
            refuse_other_rows([4, 5], load, data, ids, same, "look")
        assert error.value.remedy == "look"
    assert torch.equal(before, torch.get_rng_state())
