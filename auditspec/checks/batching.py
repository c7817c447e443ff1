"""batching: whether examples score the same alone as together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult

EXAMPLES = 16
"""Examples a behaviour that are scored twice."""
THRESHOLD = 0.01
"""Largest accepted change, in shares of the tolerance or of the behaviour's largest effect."""


@dataclass(frozen=True)
class TwoBatchings:
    """The scores of some examples of a behaviour, each in a batch of its own and all in one."""

    behavior: str
    examples: int
    apart: float
    """Distance of the two, in the statistic's unit."""
    scale: float
    """The tolerance, or the largest effect if that is larger; what rounding explains stays below the threshold."""

    @property
    def change(self) -> float:
        """In shares of the scale; infinite where that is 0."""
        return self.apart / self.scale if self.scale else float("inf") if self.apart else 0.0


class Batching(Check):
    """Largest distance between the scores of examples by themselves and together, on the deployed model.

    The batch size is the spec's and the rows of a batch are the same for every model, so that effects compare like
    with like; but a score that goes by the padding of a batch, or by the other examples in it, is none of the example
    alone, and another batch size gives other effects.
    """

    id = "batching"
    title = "Scores do not depend on the batch"
    statistic_name = "largest change of a behaviour's scores when examples are alone"
    unit = "shares of the tolerance or the largest effect"
    source = "the same examples in batches of two sizes (docs/checks.md)"
    looks_at = (Estimated,)

    def __init__(self, pairs: Sequence[TwoBatchings], batch_size: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        """Of the spec."""

    @classmethod
    def of(cls, subject: Subject) -> Batching | CheckResult:
        """On a few examples of every behaviour, evenly spread; not where the code draws random numbers, which go by the batch."""
        estimated = subject[Estimated]
        reader, state = estimated.reader, estimated.reader.rerun.trajectory.stages[-1].last
        (together, rows), (alone, _) = (reader.thinned(reader.rerun, EXAMPLES) for _ in range(2))
        alone.batch_size = 1
        scored, by_themselves = together.plug_in(state), alone.plug_in(state)
        unit = 16 * torch.finfo(reader.rerun.dtype or torch.float32).eps
        pairs = []
        for name, part in together.slices.items():
            if part.metric.scorings > 1 and not part.metric.of_sequences:
                continue
            sizes = [abs(effects.effect(name)) for effects in estimated.effects.values()]
            apart = part.statistic.distance(scored[name], by_themselves[name])
            rounding = unit * float(np.abs(scored[name]).mean()) / THRESHOLD
            scale = max(part.behavior.concern.tolerance, rounding, *sizes)
            pairs.append(TwoBatchings(name, len(rows[name]), apart, scale))
        return cls(pairs, reader.batch_size) if pairs else cls.skipped(message("no-steady-score"))

    def run(self) -> CheckResult:
        """Fails where a behaviour's scores are others."""
        details = [
            CheckDetail(
                subject=pair.behavior,
                behavior=pair.behavior,
                outcome="pass" if pair.change <= THRESHOLD else "fail",
                statistic=pair.change if pair.change < float("inf") else None,
                examples=pair.examples,
                notes=()
                if pair.change <= THRESHOLD
                else (message("scores-go-by-batch", apart=pair.apart, size=self.batch_size),),
            )
            for pair in self.pairs
        ]
        odd = [d.line for d in details if d.outcome == "fail"]
        return self.result(
            "fail" if odd else "pass",
            odd or message("scores-alone-as-together"),
            statistic=max((d.statistic for d in details if d.statistic is not None), default=0.0),
            threshold=THRESHOLD,
            details=details,
        )
