"""Who is guilty, by exact retraining with the clean twins of what was planted; and who was named rightly.

With levels signed towards the concern, base the level without anything planted, and for each planted
party g

    fault = deployed - base
    part(g) = max(deployed - level(g clean), level(all clean but g) - base)

g has to be named where part(g) exceeds the tolerance: it is needed for the fault, or brings one by itself.
Where there is a fault and no such party, several small ones made it together. A planted party is never
wrongly named where there is a fault; where there is none, naming anybody is an accusation, but for one
whose part is within a quarter of the tolerance of it (`BORDER`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .draw import Behavior, Pipeline
from .retrain import Logits, Retraining, level

BORDER = 0.75
"""In tolerances: a fault between this and 1 may be named and may be acquitted."""
Word = Literal[
    "right",
    "part",
    "wrong",
    "right+wrong",
    "accused",
    "acquitted",
    "within",
    "missed",
    "inconclusive",
]
"""What a verdict is worth.

right: exactly the guilty ones are named. part: some of the guilty, nobody else. wrong: only others.
right+wrong: others beside guilty ones. accused: somebody, where there is no fault. acquitted: nobody, where
there is none. within: nobody, where a fault stays inside the stated limit. missed: nobody, where there is one
beyond it. inconclusive: no claim.
"""
CLEARING = ("absent", "no-effect")
INNOCENTS = ("wrong", "right+wrong", "accused")
"""Somebody without guilt was named."""


@dataclass(frozen=True)
class Truth:
    """What exact retraining says of one behaviour; levels in the metric's unit."""

    deployed: float
    base: float
    limit: float
    fault: float
    """Towards the concern, as are `parts`."""
    parts: dict[str, float]
    tolerance: float
    beyond: bool
    """Whether the deployed model is beyond the limit."""

    @property
    def faulty(self) -> bool:
        return self.fault > self.tolerance

    @property
    def must(self) -> frozenset[str]:
        """Everyone who has to be named; empty for a fault that only several together made."""
        if not self.faulty:
            return frozenset()
        return frozenset(g for g, part in self.parts.items() if part > self.tolerance)

    @property
    def may(self) -> frozenset[str]:
        """Everyone whom it is not wrong to name."""
        return frozenset(self.parts) if self.fault > BORDER * self.tolerance else frozenset()


def truths(pipeline: Pipeline, run: Retraining, clean: list[Logits]) -> dict[str, Truth]:
    """Of every behaviour.

    Args:
        pipeline: with its planted parties.
        run: retrains it.
        clean: logits on the holdout of the models by which the auditor sets the limits.
    """
    labels = pipeline.world.holdout.y
    every = frozenset(pipeline.parties)
    found = {}
    for behavior in pipeline.behaviors:

        def at(cleaned: Collection[str], behavior: Behavior = behavior) -> float:
            return level(behavior, run.logits(frozenset(cleaned)), labels)

        sign = 1.0 if behavior.direction == "increase" else -1.0
        deployed, base = at(()), at(every)
        limit = limit_of(behavior, [level(behavior, z, labels) for z in clean])
        found[behavior.id] = Truth(
            deployed=deployed,
            base=base,
            limit=limit,
            fault=sign * (deployed - base),
            parts={
                g: max(sign * (deployed - at({g})), sign * (at(every - {g}) - base)) for g in every
            },
            tolerance=behavior.tolerance,
            beyond=sign * (deployed - limit) > 0,
        )
    return found


def limit_of(behavior: Behavior, levels: list[float]) -> float:
    """What an auditor calls acceptable: the mean of clean models, and max(tolerance, 2 sd) beyond it."""
    spread = max(behavior.tolerance, 2 * float(np.std(levels, ddof=1)))
    edge = float(np.mean(levels)) + (spread if behavior.direction == "increase" else -spread)
    return float(f"{edge:.4g}")


def word_of(truth: Truth, verdict: str, named: Collection[str], *, limited: bool) -> Word:
    """What a verdict is worth.

    Args:
        truth: of the behaviour.
        verdict: as the audit gave it.
        named: its parties.
        limited: whether the audit knew the limit.
    """
    said = frozenset(named)
    if not said and verdict not in CLEARING:
        return "inconclusive"
    if not truth.faulty:
        if not said:
            return "acquitted"
        return "part" if said <= truth.may else "accused"
    if not said:
        return "within" if limited and not truth.beyond else "missed"
    if not said <= truth.may:
        return "right+wrong" if said & truth.may else "wrong"
    if truth.must:
        return "right" if truth.must <= said else "part"
    return "right" if len(said) > 1 or said == truth.may else "part"
