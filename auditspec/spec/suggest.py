"""What the writer of an unknown word probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that is most like a word; None where none is to the degree of `cutoff` (0 to 1)."""
    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str], kind: str) -> str:
    """A hint: the nearest known word, or else all of them; `kind` names them ("columns")."""
    words = list(known)
    if meant := nearest(word, words):
        return f"did you mean {meant!r}?"
    return f"{kind}: {', '.join(words) or 'none'}"
