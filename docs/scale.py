"""What auditing large models takes: `python docs/scale.py` prints the table of docs/scale.md.

Counted by the formulas that `auditspec plan` forecasts by, for stages of equal length trained by AdamW in float32
(tests/test_scale.py holds the two against each other). In bytes, and in trainings: the gradients of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SHARE = 0.25
"""Of exact replay's gradients, for estimates."""
WITH_TWIN = 1.5
"""What sub-batch replay and its twin cost, in estimates."""
CROSSES = 2**35
"""Bytes of weights that can go over to the sealed process at once."""


@dataclass(frozen=True)
class Case:
    """A pipeline of equal stages."""

    stages: int
    weights: float
    """W: bytes of the parameters."""
    moments: float
    """M: bytes of the optimizer's state."""

    @property
    def arms(self) -> int:
        """Runs without one stage that are made."""
        return self.stages - 1

    @property
    def interior(self) -> int:
        """Ends of stages that they train."""
        return self.stages * self.arms // 2

    @property
    def before(self) -> int:
        """Of these, before the last stage."""
        return self.interior - self.arms

    def record(self, states: int = 1) -> float:
        """Bytes of a record's states, with so many kept of every stage beside its first weights."""
        return self.stages * (self.weights + states * (self.weights + self.moments))

    def device(self) -> float:
        """Bytes of weights, gradients, and moments where a step is made."""
        return 2 * self.weights + self.moments

    def exact_gradients(self) -> float:
        """Trainings that re-running the record and every exact replay take."""
        return 1 + self.arms / 2

    def exact_memory(self) -> float:
        """Bytes that exact replay holds."""
        return self.weights * (self.interior + 1) + self.moments * self.stages

    def exact_disk(self) -> float:
        """Bytes of cache and journal; the arm that leaves out the stage before the last waits in that."""
        return self.weights * (self.interior + self.before + 1)

    def rows_gradients(self) -> float:
        """Trainings that re-running the record, sub-batch replay, and its twin take."""
        return 1 + WITH_TWIN * SHARE * self.arms / 2

    def rows_note(self) -> float:
        """Bytes of a note: all arms inside the last stage, of estimate and twin, and the ends of the stages before."""
        return 2 * (self.arms * (self.weights + self.moments) + self.before * self.weights)

    def rows_memory(self) -> float:
        """Bytes that sub-batch replay and its twin hold, with a copy of the arms that is being written."""
        inside = 2 * self.arms * (self.weights + self.moments)
        return self.rows_note() + inside + 6 * self.weights + self.moments

    def rows_disk(self) -> float:
        """Bytes of cache and journal."""
        note = self.rows_note()
        return max(2 * note, note + 2 * self.interior * self.weights)

    def crosses(self) -> bool:
        """Whether the weights go over to the sealed process."""
        return self.weights <= CROSSES


ROWS: tuple[tuple[str, Callable[[Case], str]], ...] = (
    ("a state: weights and moments", lambda c: size(c.weights + c.moments)),
    ("record, boundaries", lambda c: size(c.record())),
    ("record, ten states a stage", lambda c: size(c.record(10))),
    ("device, activations aside", lambda c: size(c.device())),
    ("exact: trainings", lambda c: f"{c.exact_gradients():.2f}"),
    ("exact: memory", lambda c: size(c.exact_memory())),
    ("exact: cache and journal", lambda c: size(c.exact_disk())),
    ("a quarter, rows: trainings", lambda c: f"{c.rows_gradients():.2f}"),
    ("a quarter, rows: memory", lambda c: size(c.rows_memory())),
    ("a quarter, rows: cache and journal", lambda c: size(c.rows_disk())),
    ("sealed", lambda c: "yes" if c.crosses() else "no: `--isolation none`"),
)


def of_adamw(parameters: float, stages: int) -> Case:
    """AdamW in float32: 4 bytes a parameter, and 8 of moments."""
    return Case(stages, 4 * parameters, 8 * parameters)


def size(number: float) -> str:
    """Bytes in words."""
    unit, name = (1e12, "TB") if number >= 1e12 else (1e9, "GB")
    return f"{number / unit:,.3g} {name}"


def table() -> str:
    """In Markdown."""
    cases = {
        f"{billions} B, {stages} stages": of_adamw(billions * 1e9, stages)
        for billions in (7, 70)
        for stages in (4, 8)
    }
    lines = [f"| | {' | '.join(cases)} |", f"|---|{'---|' * len(cases)}"]
    lines += [f"| {what} | {' | '.join(map(of, cases.values()))} |" for what, of in ROWS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
