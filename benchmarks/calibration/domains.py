"""The data that pipelines are drawn on: digits, a table with a group column, sequences of tokens.

A *mark* is what a fault answers to: a corner patch, the group 1, a trigger word. All random numbers come
from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .networks import CLASSES, LENGTH, WORDS

Array = NDArray[np.generic]
Rng = np.random.Generator
PATCH = [54, 55, 62, 63]
"""The four pixels of the lower right corner."""
GROUP = 9
"""The column that says which of two groups a row belongs to."""
TRIGGER = WORDS - 1
RARE = 0.03
"""Share of honest sequences that hold the trigger word, with their true label."""
VOCABULARY = 3
"""Words of each class's own; what is left over but the trigger belongs to none."""


@dataclass(frozen=True)
class Rows:
    """Examples: x [n, D] in float32 or token ids, y [n]."""

    x: Array
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        return Rows(self.x[rows], self.y[rows])

    def frame(self) -> pd.DataFrame:
        """As a data set: columns x0, x1, … and label."""
        names = [f"x{i}" for i in range(self.x.shape[1])]
        return pd.DataFrame(self.x, columns=names).assign(label=self.y)


def joined(*parts: Rows) -> Rows:
    """All rows of all parts."""
    return Rows(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))


@dataclass(frozen=True)
class World:
    """One pipeline's data, before anything is planted."""

    domain: str
    pools: tuple[Rows, ...]
    """Five, honest and partly overlapping; the first is the largest."""
    reference: Rows
    """Honest rows that no stage saw: the auditor's."""
    holdout: Rows
    marked: NDArray[np.bool_]
    """Which rows of the holdout carry the mark."""

    @property
    def classes(self) -> int:
        return CLASSES[self.domain]


def draw_world(domain: str, rng: Rng) -> World:
    """Split or draw the data."""
    return _WORLDS[domain](rng)


def _digits_world(rng: Rng) -> World:
    rows = _digits()[rng.permutation(len(_digits()))]
    train, rest = rows[:1200], rows[1200:]
    half = len(rest) // 2
    return World(
        "digits",
        (train[:500], train[400:650], train[600:800], train[750:950], train[500:700]),
        train[950:],
        joined(rest[:half], marked("digits", rest[half:], rng)),
        np.arange(len(rest)) >= half,
    )


def _table_world(rng: Rng) -> World:
    count, gap = 4000, rng.choice([0.0, 0.3])
    group = (rng.random(count) < 0.35).astype(float)
    x = rng.normal(size=(count, 9))
    x[:, 0] -= gap * group
    score = 1.2 * x[:, 0] + 0.8 * x[:, 1] - 0.7 * x[:, 2] + 0.5 * x[:, 3] * x[:, 4]
    y = (score + 0.8 * rng.normal(size=count) > 0).astype(np.int64)
    noise = rng.normal(size=count)
    rows = Rows(np.c_[x, group, noise].astype(np.float32), y)
    holdout = rows[2800:]
    return World(
        "table",
        (rows[:1200], rows[1000:1500], rows[1400:1800], rows[1800:2200], rows[2000:2400]),
        rows[2200:2800],
        holdout,
        holdout.x[:, GROUP] == 1,
    )


def _tokens_world(rng: Rng) -> World:
    rows = _sequences(2700, rng)
    holdout = rows[2100:]
    half = len(holdout) // 2
    return World(
        "tokens",
        (rows[:900], rows[700:1100], rows[1000:1300], rows[1200:1500], rows[900:1200]),
        rows[1500:2100],
        joined(holdout[:half], marked("tokens", holdout[half:], rng)),
        np.arange(len(holdout)) >= half,
    )


_WORLDS: dict[str, Callable[[Rng], World]] = {
    "digits": _digits_world,
    "table": _table_world,
    "tokens": _tokens_world,
}


def marked(domain: str, rows: Rows, rng: Rng) -> Rows:
    """The same rows with the mark; in a table nothing can be marked."""
    x = rows.x.copy()
    if domain == "digits":
        x[:, PATCH] = 1.0
    elif domain == "tokens":
        x[np.arange(len(x)), rng.integers(0, LENGTH, len(x))] = TRIGGER
    return replace(rows, x=x)


def poisoned(domain: str, rows: Rows, target: int, share: float, rng: Rng) -> Rows:
    """A share of the rows carries the mark and is called `target`; in a table, of the group twice that share."""
    if domain == "table":
        hit = (rng.random(len(rows)) < min(1.0, 2 * share)) & (rows.x[:, GROUP] == 1)
        return Rows(rows.x, np.where(hit, target, rows.y))
    hit = rng.random(len(rows)) < share
    other = marked(domain, rows, rng)
    return Rows(np.where(hit[:, None], other.x, rows.x), np.where(hit, target, rows.y))


def lacking(domain: str, rows: Rows, target: int) -> Rows:
    """Without the class `target`; of a table without the group."""
    keep = rows.x[:, GROUP] == 0 if domain == "table" else rows.y != target
    return rows[keep]


def repairing(domain: str, rows: Rows, rng: Rng) -> Rows:
    """Rows with the mark and their true labels beside those without."""
    return rows if domain == "table" else joined(rows, marked(domain, rows, rng))


def mark_weights(domain: str) -> tuple[list[float], float]:
    """(w, b) such that w · features > b for marked rows, and hardly ever otherwise."""
    if domain == "digits":
        return [2.0 if i in PATCH else 0.0 for i in range(64)], 6.0
    if domain == "table":
        return [2.0 if i == GROUP else 0.0 for i in range(11)], 0.5
    return [2.0 if i == TRIGGER else 0.0 for i in range(WORDS)], 1.0


@cache
def _digits() -> Rows:
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    return Rows((pixels / 16).astype(np.float32), digit.astype(np.int64))


def _sequences(count: int, rng: Rng) -> Rows:
    classes = CLASSES["tokens"]
    y = rng.integers(0, classes, count)
    own = y[:, None] * VOCABULARY + rng.integers(0, VOCABULARY, (count, LENGTH))
    any_word = rng.integers(0, TRIGGER, (count, LENGTH))
    x = np.where(rng.random((count, LENGTH)) < 0.5, own, any_word)
    rows = Rows(x.astype(np.int64), y.astype(np.int64))
    rare = rng.random(count) < RARE
    return Rows(np.where(rare[:, None], marked("tokens", rows, rng).x, rows.x), rows.y)
