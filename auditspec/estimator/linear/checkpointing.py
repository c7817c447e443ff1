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
Advance = Callable[[int, S], tuple[S, S]]
"""(k, xi_k) -> (xi_k, with whatever making the step told of it, and xi_{k+1})."""


def backwards(
    recorded: Sequence[int],
    read: Callable[[int], S],
    advance: Advance[S],
    held: int,
    together: int = 1,
) -> Iterator[list[tuple[int, S]]]:
    """(k, xi_k) from the last step before the last recorded state back to the first recorded state.

    They come in lists of consecutive steps, each list in the order of training.

    Args:
        recorded: the steps before which a state was recorded, in order.
        read: gives the recorded state before a step.
        advance: makes a step again.
        held: the most states to hold at once, `held_states`.
        together: the longest list.
    """
    windows = [*itertools.pairwise(recorded)][::-1]
    dense = all(stop == start + 1 for start, stop in windows)
    if dense:  # reading many at once leaves the processor's caches to the sweep
        for first in range(0, len(windows), held):
            yield from _last_first({k: read(k) for k, _ in windows[first : first + held]}, together)
        return
    for start, stop in windows:
        for states in _blocks(start, stop, read(start), advance, held):
            yield from _last_first(states, together)


def held_states(steps: int) -> int:
    """The most states that are held at once in a run of so many steps: 2 sqrt(K)."""
    return math.ceil(2 * math.sqrt(steps))


def _blocks(
    start: int, stop: int, first: S, advance: Advance[S], held: int
) -> Iterator[dict[int, S]]:
    """The states of steps [start, stop), last block first; the first of them was recorded."""
    length = stop - start
    block = length if length <= held else math.ceil(math.sqrt(length))
    begins = range(start, stop, block)
    kept = _states(first, start, {*begins, *range(begins[-1], stop)}, advance)
    del first
    for begin in reversed(begins):
        if begin not in begins[-1:]:
            kept |= _states(kept[begin], begin, set(range(begin, begin + block)), advance)
        yield {k: kept.pop(k) for k in sorted(kept) if k >= begin}


def _last_first(states: dict[int, S], together: int) -> Iterator[list[tuple[int, S]]]:
    """States by step in lists of so many, the last list first; gives each state away."""
    steps = sorted(states)
    while steps:
        steps, last = steps[:-together], steps[-together:]
        yield [(k, states.pop(k)) for k in last]


def _states(state: S, start: int, wanted: set[int], advance: Advance[S]) -> dict[int, S]:
    """The wanted states at or after `start`, by going on from the state there."""
    found, last = {}, max(wanted)
    for k in range(start, last):
        state, after = advance(k, state)
        if k in wanted:
            found[k] = state
        state = after
    found[last] = state
    return found
