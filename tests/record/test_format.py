"""The record's format: what its header and its rows may say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training import SGD3, train

from auditspec.errors import RecordError
from auditspec.record.format import STEPS_SCHEMA, Layout
from auditspec.record.trajectory import Trajectory


def test_a_run_of_one_process_says_so(tmp_path: Path) -> None:
    recorded = train(tmp_path, SGD3[:1])
    assert recorded.trajectory.header.layout == Layout(world_size=1, sharding="single")
    assert {b.rank for s in recorded.trajectory.stages[0].steps for b in s.batches} == {0}


@pytest.mark.parametrize("rank", [1, -1])
def test_a_microbatch_of_a_process_that_there_was_not_is_refused(tmp_path: Path, rank: int) -> None:
    train(tmp_path, SGD3[:1])
    part = tmp_path / "record" / "00-one" / "steps-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[2]["batches"][0]["rank"] = rank
    pq.write_table(pa.Table.from_pylist(rows, schema=STEPS_SCHEMA), part)
    with pytest.raises(
        RecordError, match=rf"00-one, step 2: a microbatch of rank {rank}, of 1 process"
    ):
        _ = Trajectory.open(tmp_path / "record").stages[0].steps


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda header: header.pop("layout"), "layout Field required"),
        (lambda header: header["layout"].update(world_size=0), "layout.world_size"),
        (lambda header: header["layout"].update(world_size=2), "a single process has world_size 1"),
        (lambda header: header["layout"].update(sharding="fsdp"), "layout.sharding"),
    ],
)
def test_a_layout_that_no_run_has_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], said: str
) -> None:
    train(tmp_path, SGD3[:1])
    path = tmp_path / "record" / "record.json"
    header = json.loads(path.read_text())
    edit(header)
    path.write_text(json.dumps(header))
    with pytest.raises(RecordError, match=said):
        Trajectory.open(tmp_path / "record")
