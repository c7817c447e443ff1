"""Simultaneous intervals of the effects: how far they could move with other evaluation examples.

Examples are resampled per data set, all behaviours and stages together (Efron & Tibshirani 1993).
Intervals are simultaneous over stages x behaviours by the bootstrap distribution of the largest
studentised deviation (single-step max-T, Westfall & Young 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from auditspec.behaviors.statistics import Floats, SliceStatistic
from auditspec.results import Concern
from auditspec.spec.checks import Sampling

CHUNK = 200


@dataclass(frozen=True)
class Sample:
    """What every stage changes for each example of one behaviour, and so the stages' effects on it.

    `ids` [n] are row numbers in `dataset`, `deployed` [n] the deployed model's scores there, `changes` [n, S]
    these less the scores without each stage, and `errors` [S] the estimator's own errors of the effects (0 for
    exact ones).
    """

    behavior: str
    dataset: str
    ids: NDArray[np.int64]
    deployed: Floats
    changes: Floats
    errors: Floats
    statistic: SliceStatistic
    binary: bool
    """Whether scores are 0 or 1."""
    concern: Concern
    noise: float = 0.0
    """How far scoring again moves an effect (`repeatability`)."""

    @property
    def effects(self) -> Floats:
        """Of every stage, [S], in the statistic's unit."""
        return self.statistic.effects(self.deployed, self.changes)


@dataclass(frozen=True)
class Interval:
    """Simultaneous intervals and leading probabilities of one behaviour, [S] each."""

    low: Floats
    high: Floats
    leads: Floats


def intervals(samples: Sequence[Sample], options: Sampling, seed: int) -> dict[str, Interval]:
    """Simultaneous intervals over stages x behaviours, widened by the estimator's own error and the noise
    of scoring.

    The interval of an effect m is m ± (w + error + noise): w the half-width that the statistic makes of s, its
    bootstrap standard error, and c, the `level` quantile, over resamples, of the largest |m* - m| / s of all
    stages and behaviours, never below the quantile of a single normal (`Statistic.half_widths`).

    A stage leads a behaviour in a resample if its effect towards the concern, less its error,
    exceeds every other stage's plus theirs.
    """
    resampled = _resample(samples, options.resamples, seed)
    largest = np.zeros(options.resamples)
    spreads: dict[str, Floats] = {}
    for sample in samples:
        draws = resampled[sample.behavior]
        spread = draws.std(0)
        moved = np.abs(draws - sample.effects) / np.where(spread > 0, spread, np.inf)
        largest = np.maximum(largest, moved.max(1, initial=0.0))
        spreads[sample.behavior] = spread
    single = NormalDist().inv_cdf(0.5 + options.level / 2)
    c = max(float(np.quantile(largest, options.level)), single)
    of_behaviors = {}
    for sample in samples:
        effects, spread = sample.effects, spreads[sample.behavior]
        errors = sample.errors + sample.noise
        half = errors + sample.statistic.half_widths(
            sample.deployed, sample.changes, spread, c, options.level, binary=sample.binary
        )
        signed = sample.concern.signed(resampled[sample.behavior])
        leads = _leads(signed - errors, signed + errors)
        of_behaviors[sample.behavior] = Interval(effects - half, effects + half, leads)
    return of_behaviors


def _resample(samples: Sequence[Sample], resamples: int, seed: int) -> dict[str, Floats]:
    """Effects [R, S] on each behaviour over resampled examples; data sets are drawn independently."""
    generator = np.random.default_rng(seed)
    effects = {s.behavior: np.empty((resamples, s.changes.shape[1])) for s in samples}
    for dataset in sorted({s.dataset for s in samples}):
        group = [s for s in samples if s.dataset == dataset]
        rows = np.unique(np.concatenate([s.ids for s in group]))
        places = {s.behavior: np.searchsorted(rows, s.ids) for s in group}
        for start in range(0, resamples, CHUNK):
            count = min(CHUNK, resamples - start)
            drawn = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=count)
            for s in group:
                effects[s.behavior][start : start + count] = s.statistic.resampled_effects(
                    s.deployed, s.changes, drawn[:, places[s.behavior]]
                )
    return effects


def _leads(lowered: Floats, raised: Floats) -> Floats:
    """Share of resamples in which each stage's lowered effect exceeds every other's raised one."""
    stages = lowered.shape[1]
    if stages == 1:
        return np.ones(1)
    shares = np.empty(stages)
    for s in range(stages):
        others = np.delete(raised, s, axis=1).max(1)
        shares[s] = float((lowered[:, s] > others).mean())
    return shares


def repeatability(noise: float, level: float) -> float:
    """How far two scorings of one model lie apart at most, in that share of the cases: z sqrt(2) s (the repeatability
    limit, ISO 5725-6:1994, 4.1.4).
    """
    return float(NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt(2) * noise)
