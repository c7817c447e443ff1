"""What a language owns: its sentences, its plurals, its lists, and how it names parties and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language."""

    name: str
    """As in the `lang` attribute of HTML."""
    templates: Mapping[str, str]
    """A sentence for each code (`template`)."""
    plural: Callable[[float], int]
    """Which of a word's forms goes with so many."""
    party: Callable[[str], str]
    """A party by its id: "the initial weights", "stage 'vendor'"."""
    arm: Callable[[Sequence[str]], str]
    """A run by what it does otherwise: "without stage 'vendor'"."""
    conjunction: Callable[[int], str]
    """What stands before the last of so many items of a list: " and "."""
    more: Callable[[int], str]
    """What stands for so many items that a list does not show: " and 3 more"."""
