"""The columns of a table, read from its header, and how many rows it has."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError

MAX_LINE = 2**20


def column_names(path: Path) -> list[str] | None:
    """Names of the columns of a Parquet or CSV file; None for any other format.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, or damaged.
    """
    match path.suffix:
        case ".csv":
            return _csv_columns(path)
        case ".parquet":
            return _parquet_columns(path)
        case _:
            return None


def row_count(path: Path) -> int:
    """Rows of a Parquet or CSV file.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, or damaged.
    """
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    with open_regular(path) as file:
        try:
            if path.suffix == ".parquet":
                return int(pq.ParquetFile(file).metadata.num_rows)
            return int(pc.read_csv(file, pc.ReadOptions(use_threads=False)).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def _csv_columns(path: Path) -> list[str]:
    with open_regular(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        try:
            return next(csv.reader([text.readline(MAX_LINE)]), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise _damaged(path, error) from None


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path) as file:
        try:
            return [str(name) for name in pq.read_schema(file).names]
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> EvidenceError:
    reason = str(error).splitlines()[0]
    return EvidenceError(
        f"{path}: its header cannot be read ({reason})", "restore the file, or write it again"
    )
