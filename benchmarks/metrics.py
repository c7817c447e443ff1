"""How an estimate is compared with the exact effects. Arrays are [stages, examples] throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES, LEVEL = 1000, 0.95


def relative_error(estimate: Array, exact: Array) -> float:
    """||estimate - exact|| / ||exact||; predicting zero scores 1. NaN where the exact effect is 0."""
    reference = float(np.linalg.norm(exact))
    return float(np.linalg.norm(estimate - exact)) / reference if reference else math.nan


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def pearson(estimate: Array, exact: Array) -> float:
    """Linear correlation of one stage's effects over examples; NaN where either is constant."""
    a, b = estimate - estimate.mean(), exact - exact.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else math.nan


def spearman(estimate: Array, exact: Array) -> float:
    """Rank correlation, ties at their mean rank; NaN where either is constant."""
    return pearson(_ranks(estimate), _ranks(exact))


def _ranks(values: Array) -> Array:
    return np.asarray(pd.Series(values).rank(), dtype=np.float64)


@dataclass(frozen=True)
class Leader:
    """The stage that leads a behaviour according to the exact effects."""

    stage: int
    """Row of the effects."""
    decisive: bool
    """Whether its margin over the second stage holds in the bootstrap over examples."""


def leader(exact: Array, draw: np.random.Generator) -> Leader:
    """Who leads, from effects towards the concern.

    Decisive where the lower end of the margin's bootstrap interval (percentile, 95 %, over examples)
    lies above 0.

    Args:
        exact: [stages, examples], signed towards the concern.
        draw: source of the resamples.
    """
    order = np.argsort(-exact.mean(axis=1))
    margin = exact[order[0]] - exact[order[1]]
    rows = draw.integers(0, len(margin), (RESAMPLES, len(margin)))
    low = np.quantile(margin[rows].mean(axis=1), (1 - LEVEL) / 2)
    return Leader(int(order[0]), bool(low > 0))


def leading(exact: Sequence[Array], estimate: Sequence[Array], seed: int) -> tuple[int, int]:
    """(behaviours whose leading stage the estimate names, behaviours that were decisive).

    An estimate under which two stages tie names neither.

    Args:
        exact: per behaviour, effects towards the concern on its own rows.
        estimate: the same by the estimator.
        seed: of the bootstrap.
    """
    right = counted = 0
    for truth, guess in zip(exact, estimate, strict=True):
        found = leader(truth, np.random.default_rng(seed))
        if found.decisive:
            counted += 1
            means = guess.mean(axis=1)
            others = np.delete(means, found.stage)
            right += bool(means[found.stage] > others.max())
    return right, counted


def coverage(estimated: Sequence[float], true: Sequence[float]) -> float:
    """Share of cases whose estimated error is at least the true one."""
    pairs = list(zip(estimated, true, strict=True))
    return sum(e >= t for e, t in pairs) / len(pairs) if pairs else math.nan


def median(values: Sequence[float | None]) -> float:
    """Median of those that are numbers; NaN of none."""
    found = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.median(found)) if found else math.nan
