"""The table of scores that an audit reads."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from auditspec.artifacts.files import read_regular, write_atomically
from auditspec.artifacts.parquet import read_table
from auditspec.errors import EvidenceError, UsageError
from auditspec.score_logs.rows import Scored

MODEL, EXAMPLE, SCORE, REPETITION = "model", "example", "score", "repetition"
"""Columns: the model's digest, the row number in the behaviour's data, the score, and which scoring of the same."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def frame_of(model: str, logs: Sequence[Iterable[Scored]]) -> pd.DataFrame:
    """The rows of one model, sorted; a further log of the same examples is a further repetition.

    Raises:
        EvidenceError: if an example stands twice in one log, or as the logs' readers.
    """
    rows: dict[tuple[int, int], float] = {}
    offset = 0
    for log in logs:
        mine: dict[tuple[int, int], float] = {}
        for example, repetition, score in log:
            key = (repetition, example)
            if key in mine:
                raise EvidenceError(
                    f"example {example} stands twice in one log",
                    "give logs of one task and run each",
                )
            mine[key] = score
        again = offset if {e for _, e in mine} & {e for _, e in rows} else 0
        rows |= {
            (repetition + again, example): score for (repetition, example), score in mine.items()
        }
        offset = max((repetition for repetition, _ in rows), default=-1) + 1
    ordered = sorted(rows)
    return pd.DataFrame(
        {
            MODEL: [model] * len(ordered),
            EXAMPLE: [example for _, example in ordered],
            REPETITION: [repetition for repetition, _ in ordered],
            SCORE: [rows[key] for key in ordered],
        }
    )


def write(path: Path, frame: pd.DataFrame, *, add: bool) -> None:
    """Write the table, or add a model's rows to the one that is there.

    Raises:
        UsageError: if there is one and nothing is to be added, or it has scores of the same model, or cannot be
            written.
        EvidenceError: if what is there is no table.
    """
    if path.exists() and not add:
        raise UsageError(f"{path} is there already", "--add adds another model's scores to it")
    if path.exists():
        held = _held(path)
        same = sorted({*held[MODEL]} & {*frame[MODEL]})
        if same:
            raise UsageError(
                f"{path} has scores of {same[0]} already", "remove the table, and begin again"
            )
        frame = pd.concat([held, frame], ignore_index=True)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "check the folder"
        ) from None


def _held(path: Path) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = read_table(read_regular(path)).to_pandas(use_threads=False)
    except EvidenceError:
        raise
    except Exception as error:  # a damaged table can fail anywhere in its reader
        raise EvidenceError(f"{path}: cannot be read: {error}", "remove it") from None
    if {*frame.columns} != {MODEL, EXAMPLE, REPETITION, SCORE}:
        raise EvidenceError(f"{path}: no table that scores import wrote", "name another file")
    return frame
