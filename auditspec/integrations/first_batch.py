"""The first batch of a stage, held against what `load_batch` gives of its rows: a record that an audit would not
believe is refused before it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from auditspec.artifacts.datasets import Dataset
from auditspec.errors import RecordError
from auditspec.record.generators import undisturbed

LoadBatch = Callable[[Any, Any], Any]
Same = Callable[[Any, LoadBatch, Dataset, Sequence[int]], bool]


class OtherRowsError(RecordError):
    """A trainer's examples are not the rows of the data set that was named."""


def refuse_other_rows(
    batch: Any,
    load_batch: LoadBatch,
    data: Dataset,
    ids: Sequence[int],
    same: Same,
    remedy: str,
) -> None:
    """Refuse a batch that is not what `load_batch` makes of its rows; random numbers are left as they were.

    Args:
        batch: as the trainer made it.
        load_batch: (data set, ids) -> batch, of the recorder.
        data: that the rows are of.
        ids: the rows that the batch is said to hold.
        same: (batch, load_batch, data, ids) -> whether it holds them.
        remedy: what to do otherwise.

    Raises:
        OtherRowsError: if it holds others, or `load_batch` fails.
    """
    rows = f"rows {', '.join(map(str, ids[:3]))}, … of '{data.name}'"
    with undisturbed(torch.device("cpu")):
        try:
            holds = same(batch, load_batch, data, ids)
        except Exception as error:
            raise OtherRowsError(
                f"load_batch fails on {rows}: {type(error).__name__}: {error}", remedy
            ) from error
    if not holds:
        raise OtherRowsError(
            f"load_batch makes another batch of {rows} than the trainer's loader", remedy
        )
