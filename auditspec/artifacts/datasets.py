"""A data set as user code gets it: `load_batch(dataset, ids)` reads rows from `dataset.frame`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from auditspec.artifacts.digest import check, digest_bytes, read_verified
from auditspec.artifacts.manifest import digest_path
from auditspec.errors import EvidenceError

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".parquet", ".csv")
MAX_COLUMNS = 100_000
"""Of a CSV file."""


class Dataset:
    """Examples with a digest; example ids are row numbers of `frame`.

    Tables (Parquet, CSV) are read once, at `open`, and `frame` comes from the bytes that were
    hashed. For other formats user code reads `path` itself; then the digest says what the file was
    when it was opened.
    """

    name: str
    path: Path
    digest: str

    def __init__(self, name: str, path: Path, digest: str, table: bytes | None = None) -> None:
        """Use `Dataset.open`; `table` holds the bytes of a Parquet or CSV file."""
        self.name = name
        self.path = path
        self.digest = digest
        self._table = table
        self.original: Dataset | None = None
        """The data set of which this is a disguise."""

    @classmethod
    def open(
        cls, path: str | Path, name: str | None = None, expected: str | None = None
    ) -> Dataset:
        """Open a file or folder, check its digest, and name it (by default the file's stem).

        Raises:
            EvidenceError: if it is missing, unsafe to read, or not what `expected` says.
        """
        path = Path(path)
        name = path.stem if name is None else name
        if path.suffix in TABLES and not path.is_dir():
            table = read_verified(path, expected)
            return cls(name, path, digest_bytes(table), table)
        found = digest_path(path)
        if expected is not None:
            check(path, expected, found.digest)
        return cls(name, path, found.digest)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All rows, read at first use and kept; not to be changed by its reader.

        Raises:
            EvidenceError: if the data set is not a table, or is damaged.
        """
        if self._table is None:
            raise EvidenceError(
                f"data set '{self.name}' ({self.path}) is not a table",
                f"store it as {' or '.join(TABLES)}, or read dataset.path in load_batch",
            )
        try:
            frame = (
                _read_csv(self._table) if self.path.suffix == ".csv" else _read_parquet(self._table)
            )
        except Exception as error:  # a damaged table can fail anywhere in its reader
            raise EvidenceError(
                f"data set '{self.name}' ({self.path}) cannot be read: {error}",
                "restore the file, or write it again",
            ) from None
        self._table = None
        return frame

    def disguised(
        self,
        *,
        name: str | None = None,
        path: Path | None = None,
        digest: str | None = None,
        frame: pd.DataFrame | None = None,
    ) -> Dataset:
        """This table under another name, path, or digest, or with other rows: to probe its readers.

        Raises:
            EvidenceError: if the data set is not a table.
        """
        other = Dataset(name or self.name, path or self.path, digest or self.digest)
        other.__dict__["frame"] = self.frame if frame is None else frame
        other.original = self if self.original is None else self.original
        return other

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {str(self.path)!r}, {self.digest!r})"


def read_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table, all its rows; `Dataset.frame` would hold the same.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, or damaged.
    """
    data = read_verified(path, None)
    try:
        return (_read_csv if path.suffix == ".csv" else _read_parquet)(data, list(names))
    except Exception as error:  # a damaged table can fail anywhere in its reader
        raise EvidenceError(
            f"{path}: cannot be read: {error}", "restore the file, or write it again"
        ) from None


def _read_csv(data: bytes, names: list[str] | None = None) -> pd.DataFrame:
    import pandas as pd

    if data[: data.find(b"\n") % (len(data) + 1)].count(b",") >= MAX_COLUMNS:
        raise ValueError(f"it has more than {MAX_COLUMNS} columns")
    return pd.read_csv(io.BytesIO(data), usecols=names)


def _read_parquet(data: bytes, names: list[str] | None = None) -> pd.DataFrame:
    from auditspec.artifacts.parquet import read_table

    frame: pd.DataFrame = read_table(data, names).to_pandas(use_threads=False)
    return frame
