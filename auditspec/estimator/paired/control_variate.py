"""What the recorded run's signals foretell of an arm's, fitted window by window.

The recorded gradient g_k on the same minibatch is the control variate of the arm's h_k. With s and n
neighbouring sampled steps, r_s = h_s - c g_s, and u = (k - s) / (n - s),

    h_k ~ c g_k + 4a / (1 + 3a) ((1 - u) r_s + u r_n)                   for s < k < n

c is the coefficient of least squares over the past windows. a is the correlation of r between neighbouring
samples: the part of its variance that lasts longer than one minibatch, and so says something of other steps.
Of that part the mean of m samples predicts best with the weight m a / (1 + (m - 1) a): m = 1 for a predictor,
which knows r_s only. A corrector has two samples, but its errors partly cancel those of its neighbours: m = 4.

    num = 0.7 num + <g_n - g_s, h_n - h_s>;  den = 0.7 den + |g_n - g_s|^2;  c = clip(num / den, 0, 1)
    joint = 0.9 joint + <r_s, r_n>;  own = 0.9 own + (|r_s|^2 + |r_n|^2) / 2;  a = clip(joint / own, 0, 1)

Batch statistics take c = a = 1. Control variates: Owen, Monte Carlo theory, methods and examples (2013), ch. 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from auditspec.estimator.step_signals import VARIANCE, Signal, Tensors

FORGET, FORGET_SHARED = 0.7, 0.9
"""What a window leaves of the sums behind c, and of those behind a."""
POOLED = 4
"""m of a corrector."""


@dataclass(frozen=True)
class Window:
    """The signals at the two ends of a window, of the arm (h) and of the recorded run (g)."""

    h_s: Signal
    g_s: Signal
    h_n: Signal | None = None
    g_n: Signal | None = None
    """None while the window's end is unknown."""


@dataclass
class ControlVariate:
    """An arm's coefficients in one stage, and how well they foretold it."""

    num: float = 0.0
    den: float = 0.0
    joint: float = 0.0
    own: float = 0.0
    c: float = 1.0
    a: float = 1.0
    signal2: float = 0.0
    """Sum of |h_n|^2 over the sampled steps n that were predicted first."""
    missed2: float = 0.0
    """Sum of |h_n - (c g_n + a r_s)|^2 over them, c and a as they were before h_n was known."""
    c_sum: float = 0.0
    """Sum of c |h_n|^2."""
    a_sum: float = 0.0
    recorded2: float = 0.0
    """Sum of |g_n|^2."""

    def between(self, window: Window, g_k: Signal, u: float) -> Signal:
        """h_k at the part u of a window; where its end is unknown, as predicted from its beginning."""
        if window.h_n is None or window.g_n is None:
            shrink, u, ends = self.a, 0.0, (window.h_s, window.g_s, window.h_s, window.g_s)
        else:
            shrink = POOLED * self.a / (1 + (POOLED - 1) * self.a)
            ends = (window.h_s, window.g_s, window.h_n, window.g_n)
        statistics = _blend(1.0, 1.0, u, g_k.statistics, [end.statistics for end in ends])
        gradients = _blend(self.c, shrink, u, g_k.gradients, [end.gradients for end in ends])
        moved = {n: t.clamp_min(0) if n.endswith(VARIANCE) else t for n, t in statistics.items()}
        return Signal(gradients, moved, g_k.counts)

    def fit(self, h_s: Signal, g_s: Signal, h_n: Signal, g_n: Signal) -> None:
        """Take one more window into the coefficients."""
        ends = [
            (h_s.gradients[name], h, g_s.gradients[name], g_n.gradients[name])
            for name, h in h_n.gradients.items()
            if all(name in signal.gradients for signal in (h_s, g_s, g_n))
        ]
        self._judge(ends)
        num, den = FORGET * self.num, FORGET * self.den
        for h_first, h_last, g_first, g_last in ends:
            moved = (g_last - g_first).double()
            num += float((moved * (h_last - h_first)).sum())
            den += float(moved.square().sum())
        self.num, self.den = num, den
        if den > 0:
            self.c = min(max(num / den, 0.0), 1.0)
        joint, own = FORGET_SHARED * self.joint, FORGET_SHARED * self.own
        for h_first, h_last, g_first, g_last in ends:
            r_s, r_n = (h_first - self.c * g_first).double(), (h_last - self.c * g_last).double()
            joint += float((r_s * r_n).sum())
            own += float((r_s.square() + r_n.square()).sum()) / 2
        self.joint, self.own = joint, own
        if own > 0:
            self.a = min(max(joint / own, 0.0), 1.0)

    def diagnostics(self, stage: str) -> dict[str, float]:
        """What `Counterfactual.diagnostics` says of an arm's way through a later stage.

        Means of c and a, weighted by |h|^2; the share of |h|^2 that was foretold wrongly (more than 1
        where nothing would have been better); and |h|^2 in units of the recorded |g|^2.
        """
        if not self.signal2:
            return {}
        return {
            f"{stage}: c": self.c_sum / self.signal2,
            f"{stage}: a": self.a_sum / self.signal2,
            f"{stage}: missed": self.missed2 / self.signal2,
            f"{stage}: size": self.signal2 / self.recorded2 if self.recorded2 else math.inf,
        }

    def _judge(self, ends: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Hold h_n against what c and a made of g_n, h_s, and g_s before it was known."""
        signal = 0.0
        for h_s, h_n, g_s, g_n in ends:
            foreseen = self.c * g_n + self.a * (h_s - self.c * g_s)
            signal += float(h_n.double().square().sum())
            self.missed2 += float((h_n - foreseen).double().square().sum())
            self.recorded2 += float(g_n.double().square().sum())
        self.signal2 += signal
        self.c_sum += self.c * signal
        self.a_sum += self.a * signal


def _blend(c: float, shrink: float, u: float, g_k: Tensors, ends: Sequence[Tensors]) -> Tensors:
    """C g_k + shrink ((1 - u)(h_s - c g_s) + u (h_n - c g_n)), per tensor.

    One that an end of the window lacks takes the recorded value. `ends` are h_s, g_s, h_n, g_n.
    """
    h_s, g_s, h_n, g_n = ends
    blended: Tensors = {}
    for name, g in g_k.items():
        if any(name not in end for end in ends):
            blended[name] = g
            continue
        r = h_s[name] - c * g_s[name]
        if u:
            r = (1 - u) * r + u * (h_n[name] - c * g_n[name])
        blended[name] = c * g + shrink * r
    return blended
