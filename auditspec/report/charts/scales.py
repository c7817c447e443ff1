"""From values to pixels, and round values between for an axis."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from auditspec.report.numbers import MINUS

PLAIN = (1e-6, 1e6)
"""Sizes that an axis writes without a power of ten."""


class Tick(NamedTuple):
    """A round value, and how it is written."""

    value: float
    text: str


@dataclass(frozen=True)
class Scale(ABC):
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; of one beyond either end, a pixel beyond it."""
        low, high = self.measure(self.low), self.measure(self.high)
        return self.start + (self.measure(value) - low) / (high - low) * (self.end - self.start)

    @abstractmethod
    def measure(self, value: float) -> float:
        """What grows evenly along the axis."""

    @abstractmethod
    def ticks(self, count: int) -> Sequence[Tick]:
        """About so many round values, from the lowest to the highest."""


@dataclass(frozen=True)
class Linear(Scale):
    """Evenly by value."""

    def measure(self, value: float) -> float:
        """The value."""
        return value

    def ticks(self, count: int) -> Sequence[Tick]:
        """Multiples of 1, 2, or 5 times a power of ten, as d3 chooses them (Bostock, d3-array, `ticks`)."""
        raw = (self.high - self.low) / count
        power = math.floor(math.log10(raw))
        over = raw / 10.0**power
        factor = 10 if over >= 50**0.5 else 5 if over >= 10**0.5 else 2 if over >= 2**0.5 else 1
        step = factor * 10.0**power
        slack = 1e-9
        first, last = math.ceil(self.low / step - slack), math.floor(self.high / step + slack)
        values = [round(k * step, max(0, 3 - power)) + 0.0 for k in range(first, last + 1)]
        return [Tick(value, _written(value, power + (factor == 10))) for value in values]


@dataclass(frozen=True)
class Logarithmic(Scale):
    """Evenly by the logarithm; all values are positive."""

    def measure(self, value: float) -> float:
        """Its logarithm."""
        return math.log10(value)

    def ticks(self, count: int) -> Sequence[Tick]:
        """Powers of ten: each, or every second, and so on, so that there are not many more than `count`."""
        slack = 1e-9
        first = math.ceil(math.log10(self.low) - slack)
        last = math.floor(math.log10(self.high) + slack)
        every = max(1, -(-(last - first + 1) // (count + 2)))
        return [Tick(10.0**k, f"1e{k}") for k in range(first, last + 1) if k % every == 0]


def _written(value: float, power: int) -> str:
    """With the digits that tell neighbours apart, whose distance is a few times ten to a power."""
    if value == 0:
        return f"{value:.{max(0, -power)}f}" if 10.0**power >= PLAIN[0] else "0"
    if PLAIN[0] <= abs(value) < PLAIN[1]:
        text = f"{value:,.{max(0, -power)}f}"
    else:
        text = f"{value:.{max(1, math.floor(math.log10(abs(value))) - power + 1)}g}"
    return text.replace("-", MINUS, 1) if value < 0 else text
