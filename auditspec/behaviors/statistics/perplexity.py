"""How many equally likely tokens a language model's doubt amounts to."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from auditspec.behaviors.statistics.interface import Columns, Counts, Floats, Statistic
from auditspec.spec.measures import TOKENS, DeclaredMetric


@final
class Perplexity(Statistic):
    """exp(sum of s_i / sum of t_i): s_i is the negative log-likelihood of text i, and t_i the tokens that it is a total
    over (Jelinek et al. 1977). Long texts weigh as many times as they have tokens; it is no mean of exponentials.
    """

    name: Literal["perplexity"]
    words: ClassVar[str] = "perplexity"
    reads_tokens: ClassVar[bool] = True

    def unit(self, scores: str) -> str:
        """Tokens that would be equally likely."""
        return "tokens"

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """From 1, where every token is certain."""
        return 1.0, np.inf

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Scores must be totals over tokens."""
        if metric.counts_tokens:
            return ""
        return (
            f"it is of the metric 'sequence-nll' a sequence, and {metric.name!r} counts no tokens"
        )

    def level(self, scores: Floats, columns: Columns) -> Floats:
        """Exp of nats a token."""
        return np.asarray(np.exp(scores.sum(0) / columns[TOKENS].sum()))

    def resampled(self, scores: Floats, counts: Counts, columns: Columns) -> Floats:
        """All resamples in one product; those without an example are as the examples are."""
        counts = np.where(counts.any(1, keepdims=True), counts, 1)
        tokens = (counts @ columns[TOKENS]).reshape(-1, *(1 for _ in scores.shape[1:]))
        resampled: Floats = np.exp(counts @ scores / tokens)
        return resampled

    def distance(self, ours: Floats, theirs: Floats, columns: Columns) -> float:
        """The larger level times the root mean square over examples, in nats a token: no two levels are further apart,
        by the mean value theorem.
        """
        apart = np.sqrt(np.mean((ours - theirs) ** 2)) * len(ours) / columns[TOKENS].sum()
        steepest = max(self.level(ours, columns), self.level(theirs, columns))
        return float(steepest * apart)

    def weights(self, scores: Floats, columns: Columns) -> Floats:
        """Perplexity / sum of t."""
        return np.full(len(scores), self.level(scores, columns) / columns[TOKENS].sum())
