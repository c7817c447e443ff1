"""Parquet tables within what the bytes of their file explain.

A few bytes can stand for a table of any length: runs, dictionaries, and shared prefixes are stored once. So what a file
declares is looked at before it is read, and texts are read as dictionaries, whose full length is known before they
are written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_EXPANSION = 1000
"""Most bytes of a table for each byte of its file."""
MAX_COLUMNS = 100_000
NUMBER = 8
"""Bytes of a value that is no text."""


def read_table(data: bytes, columns: Sequence[str] | None = None, least: int = 2**18) -> pa.Table:
    """The table that a Parquet file holds.

    Read on this thread alone: Arrow's own may outlive the read, and abort the process's exit.

    Args:
        data: the file.
        columns: those to read; None: all.
        least: bytes that a shorter file counts as.

    Raises:
        ValueError: if the table would take more memory than its file explains.
        pyarrow.ArrowException: if it is damaged, or lacks a column.
    """
    most = MAX_EXPANSION * max(len(data), least)
    plain = pq.ParquetFile(pa.BufferReader(data))
    plain.scan_contents()  # in batches; what it refuses would end this process when its footer is looked at
    stored = {field.name: field.type for field in plain.schema_arrow}
    texts = [
        path
        for path in _declared_within(plain.metadata, most)
        if not pa.types.is_dictionary(stored.get(path, pa.null()))
    ]
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
    except KeyError as error:
        raise ValueError(f"it does not describe its column {error}") from None
    table = file.read(columns=columns, use_threads=False)
    table.validate(full=True)  # an index outside its dictionary would be followed
    _refuse(sum(_written_out(chunk) for column in table.columns for chunk in column.chunks), most)
    fields = [f if stored[f.name] == f.type else f.with_type(_plain(f.type)) for f in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with texts in the place of dictionaries of them."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


def _declared_within(metadata: pq.FileMetaData, most: int) -> list[str]:
    """Check what a file declares, and give the paths of its columns of texts."""
    if metadata.num_columns > MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS} columns")
    needed = metadata.num_rows * max(1, metadata.num_columns)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        if group.num_columns != metadata.num_columns:  # Arrow would end this process
            raise ValueError("a part of it has other columns than the whole")
        needed += group.total_byte_size
        for column in map(group.column, range(group.num_columns)):
            needed += NUMBER * column.num_values
        _refuse(needed, most)
    _refuse(needed, most)
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _written_out(array: pa.Array) -> int:
    """Bytes of the texts of an array, each as often as it stands there."""
    if isinstance(array, pa.DictionaryArray):
        if not pa.types.is_string(array.type.value_type) and not pa.types.is_binary(
            array.type.value_type
        ):
            return 0
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return pc.sum(lengths.take(array.indices)).as_py() or 0
    return sum(_written_out(part) for part in _parts(array))


def _parts(array: pa.Array) -> Iterator[pa.Array]:
    if isinstance(array, pa.StructArray):
        yield from array.flatten()
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        yield array.flatten()


def _refuse(needed: int, most: int) -> None:
    if needed > most:
        raise ValueError(f"it claims to hold {needed} bytes, which its size does not explain")
