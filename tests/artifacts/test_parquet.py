"""Tables that stay as they are, and bytes that claim more than they explain."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditspec.artifacts.parquet import read_table


def written(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", **options)
    return out.getvalue()


def test_a_table_is_what_arrow_reads() -> None:
    nested = pa.list_(
        pa.struct([pa.field("name", pa.string()), pa.field("ids", pa.list_(pa.int64()))])
    )
    table = pa.table(
        {
            "number": pa.array([1, None, 3]),
            "text": pa.array(["a", None, "a"]),
            "bytes": pa.array([b"", b"\0", None]),
            "category": pa.array(["x", "y", "x"]).dictionary_encode(),
            "nested": pa.array([[{"name": "n", "ids": [1, 2]}], None, []], nested),
            "texts": pa.array([["a", "b"], [], None]),
        }
    )
    data = written(table)
    assert read_table(data).equals(pq.read_table(pa.BufferReader(data)))
    assert read_table(data, ["text", "nested.list.element.name"]).column_names == ["text", "nested"]
    frame = table.select(["number", "text", "bytes", "category"]).to_pandas().set_index("number")
    kept = written(pa.Table.from_pandas(frame))
    assert read_table(kept).to_pandas().equals(frame)


def repeated(value: Any, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([value]))


BOMBS = {
    "a list of one number": pa.table({"x": pa.array([np.zeros(40_000_000, np.int64)])}),
    "rows of one text": pa.table({"x": repeated("x" * 200_000, 20_000)}),
    "rows of nothing": pa.table({"x": pa.nulls(300_000_000 // 8 + 1, pa.int64())}),
    "texts in lists": pa.table(
        {"x": pa.ListArray.from_arrays(pa.array([0, 20_000]), repeated(b"x" * 200_000, 20_000))}
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_file_that_claims_more_than_its_size_explains(what: str) -> None:
    data = written(BOMBS[what], store_schema=False)
    assert len(data) < 2**17
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="claims to hold"):
        read_table(data)
    assert pa.total_allocated_bytes() - before < 2**24


def test_too_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditspec.artifacts.parquet.MAX_COLUMNS", 2)
    with pytest.raises(ValueError, match="more than 2 columns"):
        read_table(written(pa.table({name: [1] for name in "abc"})))
