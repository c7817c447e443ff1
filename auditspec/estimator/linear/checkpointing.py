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
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

S = TypeVar("S")
Advance = Callable[[int, S], S]
"""(k, xi_k) -> xi_{k+1}."""


def backwards(
    recorded: Sequence[int], read: Callable[[int], S], advance: Advance[S], most: int
) -> Iterator[tuple[int, S]]:
    """(k, xi_k) from the last step before the last recorded state back to the first recorded state.

    Args:
        recorded: the steps before which a state was recorded, in order.
        read: gives the recorded state before a step.
        advance: makes a step again.
        most: states to hold at once, at most (`most_states`).
    """
    for start, stop in [*itertools.pairwise(recorded)][::-1]:
        length = stop - start
        block = length if length <= most else math.ceil(math.sqrt(length))
        begins = range(start, stop, block)
        states = _states(start, read(start), {*begins, *range(begins[-1], stop)}, advance)
        for begin in reversed(begins):
            if begin != begins[-1]:
                states |= _states(begin, states[begin], {*range(begin, begin + block)}, advance)
            for k in sorted((k for k in states if k >= begin), reverse=True):
                yield k, states.pop(k)


def most_states(steps: int) -> int:
    """The most states that are held at once in a run of so many steps: 2 sqrt(K)."""
    return math.ceil(2 * math.sqrt(steps))


def _states(start: int, state: S, wanted: set[int], advance: Advance[S]) -> dict[int, S]:
    """The wanted states at or after `start`, by going on from the state there."""
    states = {start: state}
    for k in range(start, max(wanted)):
        state = advance(k, state)
        if k + 1 in wanted:
            states[k + 1] = state
    return states
