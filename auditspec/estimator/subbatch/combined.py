"""A step's signal from a part of its minibatch, with the recorded signal on all of it as control variate.

    y' ~ y + (y'_part - y_part)

y is the recorded run's signal on the whole minibatch, y'_part and y_part are the arm's and the recorded run's on the same
rows. Over draws of the rows the right side is y' on average; its variance is that of the difference, which is small as long
as the two runs are alike. Control variates: Owen, Monte Carlo theory, methods and examples (2013), ch. 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from auditspec.engine.clipping import TINY, clip
from auditspec.estimator.paired.control_variate import VARIANCE
from auditspec.estimator.paired.step_signals import Signal, Tensors


@dataclass
class Foretold:
    """How well the recorded run foretells an arm on the same rows, over a stage."""

    signal2: float = 0.0
    """Sum of |h_part|^2."""
    apart2: float = 0.0
    """Sum of |h_part - g_part|^2."""
    recorded2: float = 0.0
    """Sum of |g_part|^2."""

    def take(self, ours: Signal, recorded: Signal) -> None:
        """Take one more step into account."""
        for name, h in ours.gradients.items():
            g = recorded.gradients.get(name)
            if g is not None:
                self.signal2 += float(h.double().square().sum())
                self.recorded2 += float(g.double().square().sum())
                self.apart2 += float((h - g).double().square().sum())

    def diagnostics(self, stage: str) -> dict[str, float]:
        """The share of |h|^2 on a part that the recorded run foretold wrongly, and |h|^2 in units of |g|^2."""
        if not self.signal2 or not self.recorded2:
            return {}
        return {
            f"{stage}: apart": self.apart2 / self.signal2,
            f"{stage}: size": self.signal2 / self.recorded2,
        }


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
    size2 = sum(float(g.double().square().sum()) for g in recorded.gradients.values())
    if size2**0.5 < limit * (1 - 1e-4) - TINY or not size2:
        return recorded
    along = sum(
        float((g.double() * part.gradients[name]).sum())
        for name, g in recorded.gradients.items()
        if name in part.gradients
    )
    scale = max(1.0, along / size2)
    return replace(recorded, gradients={n: g * scale for n, g in recorded.gradients.items()})


def combined(recorded: Signal, ours: Signal, theirs: Signal) -> Signal:
    """Y' as the parts give it.

    Args:
        recorded: y on the whole minibatch, before clipping.
        ours: y'_part, of the arm.
        theirs: y_part, of the recorded run.
    """
    gradients = _corrected(recorded.gradients, ours.gradients, theirs.gradients)
    statistics = _corrected(recorded.statistics, ours.statistics, theirs.statistics)
    kept = {n: t.clamp_min(0) if n.endswith(VARIANCE) else t for n, t in statistics.items()}
    return Signal(gradients, kept, recorded.counts)


def clipped(signal: Signal, limit: float | None) -> Signal:
    """A signal with its gradients clipped to the norm L; None: as they are."""
    return replace(signal, gradients=clip(signal.gradients, limit))


def _corrected(y: Tensors, ours: Tensors, theirs: Tensors) -> Tensors:
    return {
        name: value + (ours[name] - theirs[name]) if name in ours and name in theirs else value
        for name, value in y.items()
    }
