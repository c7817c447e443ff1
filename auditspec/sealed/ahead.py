"""Batches that are asked for ahead: what followed a batch once mostly follows it again.

An audit goes along the same steps many times, and a question costs more than a small batch. With a batch that was
asked for before come those that followed it then.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from auditspec.artifacts.datasets import Dataset
from auditspec.sealed.ambience import modes
from auditspec.sealed.forms import checked

if TYPE_CHECKING:
    from auditspec.sealed.functions import Function

AHEAD, AHEAD_BYTES = 16, 2**24
"""Batches that one question asks for, and bytes of them beyond which no other comes."""
_Key = tuple[int, Dataset, tuple[int, ...]]


class Loads:
    """The batches of an audit's loaders, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._followed: dict[_Key, _Key] = {}
        self._last: _Key | None = None
        self._ready: dict[_Key, Any] = {}

    def batch(self, function: Function, dataset: Dataset, ids: Sequence[int]) -> Any:
        """A batch, from those that came with an earlier one if it is there."""
        key = (function.number, dataset, tuple(ids))
        if self._last is not None:
            self._followed[self._last] = key
        self._last = key
        if key not in self._ready:
            self._ready = self._asked_for(function, self._likely(key))
        return self._ready.pop(key)

    def expect(self, function: Function, batches: Iterable[tuple[Dataset, Sequence[int]]]) -> None:
        """Batches that will mostly be asked for in this order."""
        keys = [(function.number, dataset, tuple(ids)) for dataset, ids in batches]
        self._followed.update(itertools.pairwise(keys))

    def _likely(self, key: _Key) -> list[_Key]:
        """A batch, and those that followed it when it was asked for before."""
        keys = [key]
        while len(keys) < AHEAD:
            following = self._followed.get(keys[-1])
            if following is None or following[0] != key[0] or following in keys:
                break
            keys.append(following)
        return keys

    def _asked_for(self, function: Function, keys: list[_Key]) -> dict[_Key, Any]:
        if len(keys) == 1:
            _, dataset, ids = keys[0]
            return {keys[0]: function.called(dataset, list(ids))}
        batches = [(dataset, list(ids)) for _, dataset, ids in keys]
        answer = function.code.ask(
            "loads", function=function.number, batches=batches, modes=modes()
        )
        with checked(function.entry):
            if not 0 < len(answer) <= len(keys):
                raise ValueError("batches are missing")
            return dict(zip(keys, answer, strict=False))
