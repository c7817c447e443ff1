"""Courses of the learning rate over a stage: shares of its largest rate, step by step. Free of torch.

Each is the one that torch or transformers computes (t: the step, from 0; w: warm-up; T: the course's steps; e: `end`):

| name | share at step t ≥ w | source |
|---|---|---|
| `constant` | 1 | |
| `constant_with_warmup` | 1 | transformers |
| `linear` | e + (1 − e) (T − t) / (T − w) | transformers; torch's LinearLR |
| `polynomial` | e + (1 − e) (1 − (t − w) / (T − w))^power | transformers; torch's PolynomialLR |
| `cosine` | e + (1 − e) (1 + cos π (t − w) / (T − w)) / 2 | Loshchilov & Hutter 2017; torch's CosineAnnealingLR |
| `inverse_sqrt` | 1 / √((t − w + s) / s), s the `timescale` | transformers (Vaswani et al. 2017) |
| `wsd` | 1, then over the last `decay` steps as `shape` says to e | transformers (Hu et al. 2024, warm-up, stable, decay) |

During warm-up it is t / w.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from auditspec.frozen import Frozen

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Course(Frozen, ABC):
    """How the learning rate runs over a stage."""

    name: str

    @abstractmethod
    def share(self, step: int, steps: int) -> float:
        """The rate before a step, in shares of the largest.

        Args:
            step: from 0.
            steps: of the stage.
        """


class Constant(Course):
    """The same rate at every step."""

    name: Literal["constant"] = "constant"

    def share(self, step: int, steps: int) -> float:
        """Of the largest rate: all of it."""
        return 1.0


class WarmedUp(Course):
    """A course that may begin with a warm-up."""

    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """Steps during which the rate rises from 0; below 1, in shares of the course's steps, rounded up."""
    steps: Count | None = None
    """Of the whole course, which may go on after the stage; None: the stage's."""

    def share(self, step: int, steps: int) -> float:
        """Of the largest rate."""
        whole = self.steps or steps
        warmup = math.ceil(self.warmup * whole) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return self.rise(step / warmup)
        return self.after(step - warmup, max(1, whole - warmup), warmup)

    def rise(self, progress: float) -> float:
        """During warm-up, of which `progress` is over."""
        return progress

    @abstractmethod
    def after(self, step: int, steps: int, warmup: int) -> float:
        """After warm-up; `step` and `steps` count from its end."""


class ConstantWithWarmup(WarmedUp):
    """The same rate at every step after warm-up."""

    name: Literal["constant_with_warmup"] = "constant_with_warmup"

    def after(self, step: int, steps: int, warmup: int) -> float:
        """All of it."""
        return 1.0


class Falling(WarmedUp):
    """A course that falls to `end`."""

    end: Share = 0.0
    """Share at the end of the course."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """From 1 to `end`, and `end` thereafter."""
        return self.end + (1 - self.end) * self.fall(min(step, steps), steps)

    @abstractmethod
    def fall(self, step: int, steps: int) -> float:
        """From 1 at step 0 to 0 at the last."""


class Linear(Falling):
    """Falls in a straight line."""

    name: Literal["linear"] = "linear"

    def fall(self, step: int, steps: int) -> float:
        """1 − t / T."""
        return (steps - step) / steps


class Polynomial(Falling):
    """Falls as a power of what remains."""

    name: Literal["polynomial"] = "polynomial"
    power: Annotated[float, Field(gt=0)] = 1.0

    def fall(self, step: int, steps: int) -> float:
        """(1 − t / T)^power."""
        return float((1 - step / steps) ** self.power)


class Cosine(Falling):
    """Falls as half a wave."""

    name: Literal["cosine"] = "cosine"

    def fall(self, step: int, steps: int) -> float:
        """(1 + cos π t / T) / 2."""
        return 0.5 * (1 + math.cos(math.pi * step / steps))


class InverseSqrt(WarmedUp):
    """Falls with the root of the steps."""

    name: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: Count | None = None
    """None: the warm-up; 10000 without one."""

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1 / √((t + s) / s)."""
        scale = self.timescale or warmup or 10_000
        return 1 / math.sqrt((step + scale) / scale)


class WarmupStableDecay(WarmedUp):
    """Stays, and falls over the last steps of the course."""

    name: Literal["wsd"] = "wsd"
    decay: Count
    """Steps of the fall."""
    shape: Literal["cosine", "linear", "1-sqrt"] = "cosine"
    end: Share = 0.0
    """Share before the warm-up and after the fall."""

    def rise(self, progress: float) -> float:
        """From `end`."""
        return self.end + (1 - self.end) * progress

    def after(self, step: int, steps: int, warmup: int) -> float:
        """1, then the fall, then `end`."""
        progress = min(1.0, max(0.0, (step - (steps - self.decay)) / self.decay))
        falls = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "1-sqrt": 1 - math.sqrt(progress),
        }
        return self.end + (1 - self.end) * falls[self.shape]


class Recorded(Frozen):
    """No claim."""

    name: Literal["recorded"] = "recorded"


_Known = Annotated[
    Constant
    | ConstantWithWarmup
    | Linear
    | Polynomial
    | Cosine
    | InverseSqrt
    | WarmupStableDecay
    | Recorded,
    Field(discriminator="name"),
]
ScheduleName = Literal["constant", "linear", "polynomial", "cosine", "inverse_sqrt", "recorded"]
"""Those that are whole with their defaults."""


def _with_options(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Schedule = Annotated[
    _Known, BeforeValidator(_with_options, json_schema_input_type=ScheduleName | _Known)
]
"""A course by its name, or by its name and options; or no claim."""
