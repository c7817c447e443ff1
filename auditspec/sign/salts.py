"""A salt for each leaf of a tree, all from one seed, of which some can be handed out and the others not be guessed.

    seed(left) = HMAC-SHA256(seed(node), 0x00)        seed(right) = HMAC-SHA256(seed(node), 0x01)

over the tree of RFC 6962 (`artifacts.merkle`); a leaf's salt is its seed. This is the pseudorandom function of Goldreich, Goldwasser, and
Micali (1986), punctured as by Boneh and Waters (2013): the seeds of the largest subtrees that hold no withheld leaf give the salts of
all other leaves, and nothing about those of the withheld ones. They are few: at most log2(n) for each withheld leaf.
"""

from __future__ import annotations

import hmac
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

BYTES = 32
"""Of a seed, and so of a salt."""


@dataclass(frozen=True)
class Subtree:
    """The salts of some neighbouring leaves."""

    first: int
    """Index of the first leaf."""
    leaves: int
    seed: bytes


def fresh() -> bytes:
    """A new seed."""
    return secrets.token_bytes(BYTES)


def subtrees(size: int, hidden: Sequence[int]) -> list[tuple[int, int]]:
    """The largest subtrees that hold no hidden leaf, each as its first leaf and how many it has.

    Args:
        size: leaves of the whole tree.
        hidden: indices of leaves, ascending.
    """
    return [(part.first, part.leaves) for part in _open(Subtree(0, size, b""), hidden)]


def narrowed(known: Iterable[Subtree], hidden: Sequence[int]) -> list[Subtree]:
    """The largest subtrees of known ones that hold no hidden leaf; `hidden` ascends."""
    return [part for subtree in known for part in _open(subtree, hidden)]


def salts(known: Iterable[Subtree]) -> Iterator[tuple[int, bytes]]:
    """Every leaf's index and salt."""
    for subtree in known:
        stack = [subtree]
        while stack:
            part = stack.pop()
            if part.leaves == 1:
                yield part.first, part.seed
            else:
                left, right = _halves(part)
                stack += (right, left)


def _open(part: Subtree, hidden: Sequence[int]) -> Iterator[Subtree]:
    at = bisect_left(hidden, part.first)
    if at == len(hidden) or hidden[at] >= part.first + part.leaves:
        yield part
    elif part.leaves > 1:
        for half in _halves(part):
            yield from _open(half, hidden)


def _halves(part: Subtree) -> tuple[Subtree, Subtree]:
    left = 1 << ((part.leaves - 1).bit_length() - 1)
    return (
        Subtree(part.first, left, hmac.digest(part.seed, b"\0", "sha256")),
        Subtree(part.first + left, part.leaves - left, hmac.digest(part.seed, b"\1", "sha256")),
    )
