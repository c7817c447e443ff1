"""What the writer of an unknown word probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], kind: str) -> str:
    """A hint: the nearest known word, or else all of them; `kind` names them ("columns")."""
    words = list(known)
    nearest = get_close_matches(word, words, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"{kind}: {', '.join(words) or 'none'}"
