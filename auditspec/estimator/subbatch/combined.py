"""A step's signal from a part of its minibatch, with the recorded signal on all of it as control variate.

    y' ~ y'_part + c (y - y_part)

y is the recorded run's signal on the whole minibatch, y'_part and y_part are the arm's and the recorded run's on the same
rows. Over draws of the rows the right side is y' on average, whatever c; its variance is least where c is the regression of
y'_part on y_part, fitted along the way:

    num = 0.8 num + <h_part, g_part>;  den = 0.8 den + |g_part|^2;  c = clip(num / den, 0, 1)

Batch statistics take c = 1. Control variates: Owen, Monte Carlo theory, methods and examples (2013), ch. 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditspec.engine.clipping import TINY, clip
from auditspec.estimator.interventions import Arm
from auditspec.estimator.step_signals import VARIANCE, Signal, Tensors
from auditspec.messages import Message, message

FORGET = 0.8
"""What a step leaves of the sums behind c."""

UNFORETOLD = 0.5
"""Share of |h_part|^2 that may be foretold wrongly: above, most of what a part says is noise to the arm, and half of the rows do to
a run what a quarter does: the twin no longer tells the error (docs/method.md, Sub-batch replay)."""


@dataclass
class Control:
    """An arm's coefficient in one stage, and how well the recorded run foretold it on the same rows."""

    num: float = 0.0
    den: float = 0.0
    c: float = 1.0
    signal2: float = 0.0
    """Sum of |h_part|^2."""
    missed2: float = 0.0
    """Sum of |h_part - c g_part|^2."""
    recorded2: float = 0.0
    """Sum of |g_part|^2."""
    c_sum: float = 0.0
    """Sum of c |h_part|^2."""

    def fit(self, ours: Signal, theirs: Signal) -> None:
        """Take one more part into the coefficient."""
        pairs = [
            (h, theirs.gradients[name])
            for name, h in ours.gradients.items()
            if name in theirs.gradients
        ]
        along = math.fsum(_inner(h, g) for h, g in pairs)
        recorded2 = math.fsum(_inner(g, g) for _, g in pairs)
        signal2 = math.fsum(_inner(h, h) for h, _ in pairs)
        self.num, self.den = FORGET * self.num + along, FORGET * self.den + recorded2
        if self.den > 0:
            self.c = min(max(self.num / self.den, 0.0), 1.0)
        self.signal2 += signal2
        self.recorded2 += recorded2
        self.missed2 += signal2 - 2 * self.c * along + self.c**2 * recorded2
        self.c_sum += self.c * signal2

    def combined(self, recorded: Signal, ours: Signal, theirs: Signal) -> Signal:
        """Y' as the parts give it.

        Args:
            recorded: y on the whole minibatch, before clipping.
            ours: y'_part, of the arm.
            theirs: y_part, of the recorded run.
        """
        gradients = _corrected(self.c, recorded.gradients, ours.gradients, theirs.gradients)
        statistics = _corrected(1.0, recorded.statistics, ours.statistics, theirs.statistics)
        kept = {n: t.clamp_min(0) if n.endswith(VARIANCE) else t for n, t in statistics.items()}
        return Signal(gradients, kept, recorded.counts)

    def alone(self, recorded: Signal) -> Signal:
        """What stands for y' at a step of which no row is taken: those that are taken weigh the more."""
        return replace(recorded, gradients={n: self.c * g for n, g in recorded.gradients.items()})

    def diagnostics(self, stage: str) -> dict[str, float]:
        """What `Counterfactual.diagnostics` says of an arm's way through a later stage.

        The mean of c, weighted by |h|^2; the share of |h|^2 on a part that was foretold wrongly; and |h|^2 in
        units of the recorded |g|^2.
        """
        if not self.signal2 or not self.recorded2:
            return {}
        return {
            f"{stage}: c": self.c_sum / self.signal2,
            f"{stage}: missed": self.missed2 / self.signal2,
            f"{stage}: size": self.signal2 / self.recorded2,
        }


def unreliable(arm: Arm, diagnostics: Mapping[str, float]) -> Message | None:
    """Why the twin of a counterfactual does not know its error; None where it does.

    Args:
        arm: what was left out.
        diagnostics: of every later stage (`Control.diagnostics`).
    """
    for key, missed in diagnostics.items():
        stage, _, what = key.rpartition(": ")
        if what == "missed" and missed > UNFORETOLD:
            return message(
                "rows-not-foretold",
                stages=sorted(arm.omitted),
                stage=stage,
                missed=missed,
                most=UNFORETOLD,
            )
    return None


def unclipped(recorded: Signal, part: Signal, limit: float | None) -> Signal:
    """The recorded signal before clipping.

    Clipping made f g of g. On average over parts <g, g_part> = |g|^2, so that 1/f = <f g, g_part> / |f g|^2.

    Args:
        recorded: clipped.
        part: of the recorded run on a part of the minibatch, not clipped.
        limit: L; None: the loop does not clip.
    """
    if limit is None:
        return recorded
    size2 = math.fsum(_inner(g, g) for g in recorded.gradients.values())
    if size2**0.5 < limit * (1 - 1e-4) - TINY or not size2:
        return recorded
    along = math.fsum(
        _inner(g, part.gradients[name])
        for name, g in recorded.gradients.items()
        if name in part.gradients
    )
    scale = max(1.0, along / size2)
    return replace(recorded, gradients={n: g * scale for n, g in recorded.gradients.items()})


def clipped(signal: Signal, limit: float | None) -> Signal:
    """A signal with its gradients clipped to the norm L; None: as they are."""
    return replace(signal, gradients=clip(signal.gradients, limit))


def _inner(left: Tensor, right: Tensor) -> float:
    """<left, right>, added up in double precision."""
    return float((left * right).sum(dtype=torch.float64))


def _corrected(c: float, y: Tensors, ours: Tensors, theirs: Tensors) -> Tensors:
    return {
        name: ours[name] + c * (value - theirs[name]) if name in ours and name in theirs else value
        for name, value in y.items()
    }
