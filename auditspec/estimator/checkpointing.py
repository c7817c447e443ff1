"""The states of a stage, last first, from a dense or a sparse record.

A state that was recorded is read. Between two recorded states the steps are run again, once, and
their states held while the sweep goes back over them. A window longer than 2 sqrt(K), K the steps of
the whole run, is too long to hold: the first pass keeps every sqrt(L)-th state of its L steps and
all of the last block, and every other block is run once more (Chen et al. 2016, arXiv 1604.06174).
So at most 2 sqrt(K) states are held, for one gradient more a step, or two in such a long window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from auditspec.record.rerun import Moment, Rerun
from auditspec.record.state import State, capture
from auditspec.record.trajectory import StageTrajectory, Step


def backwards(rerun: Rerun, stage: StageTrajectory) -> Iterator[tuple[Step, State, State]]:
    """(step k, xi_k, xi_{k+1}) from the stage's last step to its first.

    Raises:
        EstimationError: if the stage was recorded without its steps, or its code fails.
        RecordError: if a recorded state cannot be read.
    """
    steps = rerun.steps_of(stage)
    if not steps:
        return
    held = held_states(sum(s.header.steps for s in rerun.trajectory.stages))
    after = stage.last
    windows = [*itertools.pairwise(stage.state_steps)][::-1]
    dense = len(windows) == len(steps)
    ahead = held if dense else 1  # reading many at once leaves the processor's caches to the sweep
    for first in range(0, len(windows), ahead):
        chunk = windows[first : first + ahead]
        read = [(start, stop, stage.state(start)) for start, stop in chunk][::-1]
        while read:
            for k, state in _window(rerun, stage, *read.pop(), held):
                yield steps[k], state, after
                after = state


def held_states(steps: int) -> int:
    """The most states that are held at once in a run of so many steps: 2 sqrt(K)."""
    return math.ceil(2 * math.sqrt(steps))


def _window(
    rerun: Rerun, stage: StageTrajectory, start: int, stop: int, first: State, held: int
) -> Iterator[tuple[int, State]]:
    """The states of steps [start, stop), last first; the first of them was recorded."""
    length = stop - start
    if length == 1:
        yield start, first
        return
    block = length if length <= held else math.ceil(math.sqrt(length))
    begins = range(start, stop, block)
    kept = _states(rerun, stage, first, start, {*begins, *range(begins[-1], stop)})
    for begin in reversed(begins):
        if begin not in begins[-1:]:
            end = begin + block
            kept |= _states(rerun, stage, kept[begin], begin, set(range(begin, end)))
        for k in sorted((k for k in kept if k >= begin), reverse=True):
            yield k, kept.pop(k)


def _states(
    rerun: Rerun, stage: StageTrajectory, state: State, start: int, wanted: set[int]
) -> dict[int, State]:
    """The wanted states at or after `start`, by running on from the state there."""
    found, last = {start: state}, max(wanted)

    def keep(moment: Moment) -> None:
        if moment.step.index in wanted and moment.step.index > start:
            found[moment.step.index] = capture(rerun.model, moment.optimizer)

    if last > start:
        found[last] = rerun.run(stage, state, start, last, visit=keep)
    return found
