"""What an example is, whatever holds it: digests of the content of rows of tables and of tensors.

Two rows are the same where their numbers are, rounded to float32, and their texts: neither the type
that stores a number, nor the order of columns, nor a tensor's shape counts. BLAKE2b, 128 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    import pandas as pd

Digest = bytes
CHUNK = 4096
"""Rows of a table that are laid out at once."""


def columns_of(frame: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """The columns of a table by name, each as float32 [n] or as bytes [n] in an object array.

    Texts that are all numbers count as numbers. A missing value is NaN, or empty bytes.
    """
    return {str(name): _canonical(frame.iloc[:, i]) for i, name in enumerate(frame.columns)}


def table_rows(columns: dict[str, NDArray[Any]], names: Iterable[str]) -> list[Digest]:
    """A digest for every row, over the named columns of `columns_of`; their order does not count."""
    held = [columns[name] for name in sorted(names)]
    numbers = [c for c in held if c.dtype != object]
    texts = [c for c in held if c.dtype == object]
    digests: list[Digest] = []
    for start in range(0, len(held[0]) if held else 0, CHUNK):
        here = slice(start, start + CHUNK)
        if not texts:
            matrix = np.stack([c[here] for c in numbers], axis=1)
            digests += [_digest(row) for row in _flat_rows(matrix)]
            continue
        cells = zip(*(c[here] for c in texts), strict=True)
        if not numbers:
            digests += [_digest(*row) for row in cells]
            continue
        rows = _flat_rows(np.stack([c[here] for c in numbers], axis=1))
        digests += [_digest(row, *others) for row, others in zip(rows, cells, strict=True)]
    return digests


def leaves_of(batch: Any) -> list[Tensor]:
    """Every tensor of a batch, however nested."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def row_count(tensors: Sequence[Tensor]) -> int | None:
    """Rows of a batch: the leading dimension that all its tensors share; None where they do not."""
    lengths = {t.shape[0] if t.dim() else -1 for t in tensors}
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else None


def tensor_rows(tensor: Tensor) -> list[Digest]:
    """A digest for every row [i, ...] of a tensor; only its numbers count, in order."""
    return [_digest(row) for row in _flat_rows(_numbers(tensor))]


def final_values(tensor: Tensor) -> list[float]:
    """The last number of every row; empty where rows hold one number or none."""
    rows = _numbers(tensor)
    return rows[:, -1].tolist() if rows.shape[1] > 1 else []


def unpadded_rows(tensor: Tensor, pad: float | None) -> Iterator[set[Digest]]:
    """For every row, the digests that it may have had before `pad` was appended to it.

    Of itself, and without its last run of that number, whole or all but one.
    """
    for row in _numbers(tensor):
        other = np.flatnonzero(row != pad)
        end = int(other[-1]) + 1 if other.size else 0
        cuts = {len(row)} if pad is None else {len(row), end, min(end + 1, len(row))}
        yield {_digest(part) for cut in cuts for part in _flat_rows(row[None, :cut])}


def _numbers(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor as [rows, numbers of a row]."""
    held = tensor.detach().cpu()
    if held.is_complex():
        held = torch.view_as_real(held)
    flat = held.reshape(len(held), -1).to(torch.float32).numpy()
    return flat + np.float32(0)  # −0 is 0


def _canonical(values: pd.Series[Any]) -> NDArray[Any]:
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return np.array([str(v).encode() for v in values], dtype=object)
    if not pd.api.types.is_numeric_dtype(values):
        cells = (b"" if gone else _cell(v) for v, gone in zip(values, values.isna(), strict=True))
        texts = np.array([None, *cells], dtype=object)[1:]
        plain = values.dropna().map(lambda v: isinstance(v, str | int | float)).all()
        numbers = pd.to_numeric(values, errors="coerce") if plain else None
        if numbers is None or (numbers.isna() & values.notna()).any():
            return texts
        values = numbers
    if pd.api.types.is_complex_dtype(values):
        return np.array([str(v).encode() for v in values], dtype=object)
    with np.errstate(over="ignore"):
        return values.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)


def _cell(value: Any) -> bytes:
    """One cell of a column that does not hold numbers alone."""
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case np.ndarray() | list() | tuple():
            array = np.asarray(value)
            if array.dtype.kind in "biuf":
                return _flat_rows(array.reshape(1, -1).astype(np.float32))[0]
            return b"\0".join(_cell(v) for v in array.ravel())
        case dict():
            return b"\0".join(_cell(part) for item in sorted(value.items()) for part in item)
        case None:
            return b""
        case _:
            return str(value).encode()


def _flat_rows(matrix: NDArray[Any]) -> list[bytes]:
    plain = np.ascontiguousarray(matrix, dtype=np.float32) + np.float32(0)
    plain[np.isnan(plain)] = np.nan  # one NaN
    width = plain.shape[1] * plain.itemsize
    held = plain.tobytes()
    return [held[i * width : (i + 1) * width] for i in range(len(plain))]


def _digest(*parts: bytes) -> Digest:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        if len(parts) > 1:  # so that no two rows of texts run together alike
            hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.digest()
