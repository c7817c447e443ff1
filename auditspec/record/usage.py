"""How often a stage's batches hold each example, against uniform sampling of its declared data.

A batch of b of N rows holds a given content of multiplicity m with probability

    p = 1 - (1 - m / N)^b

so that over T steps the number of batches that hold it is binomial, Bin(T, p); drawing without
replacement within a batch or an epoch spreads less. The tail is bounded by Chernoff (1952),
P(Bin(T, p) >= k) <= exp(-T KL(k / T || p)), and multiplied by the number of contents (Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from auditspec.record.matching import StageRows

CHANCE = 1e-6
"""Largest probability, over all examples together, of a repetition that is still called chance."""
FEWEST_SHARE = 0.5
"""Share of the expected distinct examples below which a stage saw far fewer."""


@dataclass(frozen=True)
class Usage:
    """Which examples a stage's batches hold, and how often; examples are told by content."""

    stage: str
    steps: int
    seen: int
    """Rows of all batches."""
    distinct: int
    expected: float | None
    """Distinct examples under uniform sampling; None where the declared data cannot be counted."""
    declared: int | None
    """Rows of the declared data."""
    constant: int
    """Distinct examples that every step's batches hold."""
    most: int
    """Most steps whose batches hold the same example."""
    overused: int
    """Examples in more batches than uniform sampling would put them, by more than chance."""
    overused_in: int
    """Fewest batches that hold one of these."""
    usual: float
    """Batches that would hold one of these under uniform sampling, at most."""
    unread: tuple[str, ...]
    """Declared data sets of which no row was read."""

    @property
    def few(self) -> bool:
        """Whether far fewer distinct examples were seen than uniform sampling gives."""
        return self.expected is not None and self.distinct < FEWEST_SHARE * self.expected


def usage_of(rows: StageRows, contents: Mapping[str, Sequence[Hashable]]) -> Usage:
    """Count a stage's examples.

    Args:
        rows: of its batches.
        contents: of every row of each data set, in its order; a data set that is left out, for its
            rows cannot be listed, has its row numbers as contents.
    """

    def content(source: str | None, number: Hashable) -> Hashable:
        rows_of_source = contents.get(source) if source is not None else None
        if rows_of_source is not None and isinstance(number, int) and number < len(rows_of_source):
            return rows_of_source[number]
        return source, number

    batches = [Counter(content(*row) for row in step) for step in rows.steps]
    in_batches = Counter(key for batch in batches for key in batch)
    steps, seen = len(batches), rows.seen
    known = all(name in contents for name in rows.declared) and not rows.nowhere
    pool = Counter(key for name in rows.declared if known for key in contents[name])
    total, size = sum(pool.values()), seen / steps if steps else 0.0
    odds = {key: 1 - (1 - pool[key] / total) ** size for key in pool} if total else {}
    over = [
        key
        for key, count in in_batches.items()
        if key in odds and len(odds) * _tail(count, steps, odds[key]) < CHANCE
    ]
    return Usage(
        stage=rows.stage,
        steps=steps,
        seen=seen,
        distinct=len(in_batches),
        expected=sum(1 - (1 - p) ** steps for p in odds.values()) if odds else None,
        declared=total if known else None,
        constant=sum(count == steps for count in in_batches.values()),
        most=max(in_batches.values(), default=0),
        overused=len(over),
        overused_in=min((in_batches[key] for key in over), default=0),
        usual=max((steps * odds[key] for key in over), default=0.0),
        unread=tuple(name for name in rows.declared if name not in rows.used),
    )


def _tail(count: int, steps: int, p: float) -> float:
    """Upper bound of P(Bin(steps, p) >= count)."""
    share = count / steps
    if share <= p:
        return 1.0
    spread = share * math.log(share / p)
    if share < 1:
        spread += (1 - share) * math.log((1 - share) / (1 - p))
    return math.exp(-steps * spread)
