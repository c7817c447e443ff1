"""Scores as a tool's log has them, and what is common to reading such logs.

Logs are other people's files: nothing in them is executed, sizes are bounded before bytes are read, and whatever is
not as its tool writes it is refused by its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from auditspec.errors import EvidenceError, shortened

MAX_SAMPLE = 2**26
"""Bytes of one sample's JSON."""
MAX_FILE = 2**32
"""Bytes of a log, and of all samples in it together."""


class Scored(NamedTuple):
    """One score."""

    example: int
    repetition: int
    score: float


@dataclass(frozen=True)
class Wanted:
    """Which score is taken of each sample, and how samples are numbered."""

    score: str | None = None
    """Name of the metric or scorer; None: the only one."""
    filter: str | None = None
    """Of lm-eval, which scores an answer once for each filter; None: the only one."""
    first: int = 0
    """The log's id of the data's first row."""


def parsed(data: bytes, what: str) -> Mapping[str, Any]:
    """The object that JSON encodes; NaN may stand where nobody looks.

    Raises:
        EvidenceError: if it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{what}: not JSON ({shortened(str(error), 80)})") from None
    if not isinstance(value, dict):
        raise EvidenceError(f"{what}: not an object", "give the tool's own log")
    return value


def row_of(value: Any, wanted: Wanted, what: str) -> int:
    """The row that an example's id means.

    Raises:
        EvidenceError: if it is no number, or one before the first.
    """
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise EvidenceError(
            f"{what}: the id {shortened(repr(value), 80)} is no number of a row",
            "number samples by the rows of the behaviour's data",
        )
    if value < wanted.first:
        raise EvidenceError(f"{what}: id {value} lies before --first {wanted.first}")
    return value - wanted.first


def only(values: Mapping[str, Any], name: str | None, kind: str, what: str) -> Any:
    """The value of a name, or the only one.

    Raises:
        EvidenceError: if there is none, or more than one.
    """
    told = ", ".join(shortened(n, 40) for n in list(values)[:20]) or "none"
    if name is None and len(values) != 1:
        raise EvidenceError(f"{what}: which {kind} is meant? It has: {told}", f"name it: --{kind}")
    if name is not None and name not in values:
        raise EvidenceError(f"{what}: there is no {kind} {name!r}; it has: {told}")
    return values[name] if name is not None else next(iter(values.values()))


def number(value: Any, what: str) -> float:
    """A score that is a finite number, or true, or false.

    Raises:
        EvidenceError: if it is anything else.
    """
    if isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    raise EvidenceError(
        f"{what}: {shortened(repr(value), 80)} is no score",
        "score the sample again, or leave it out",
    )
