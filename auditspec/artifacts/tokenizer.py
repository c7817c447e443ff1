"""Texts as token ids and back, by a `tokenizer.json` of the library tokenizers: data, of which nothing is executed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auditspec.artifacts.digest import read_verified
from auditspec.errors import EvidenceError, UsageError


class Tokenizer:
    """The tokenizer of a model.

    Args:
        inner: of the library tokenizers.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @classmethod
    def open(cls, path: Path, expected: str | None = None) -> Tokenizer:
        """Open a file, and check its digest. What it says of padding and truncation does not count.

        Raises:
            EvidenceError: if it is missing, unsafe to read, not what `expected` says, or no tokenizer.
            UsageError: if the library is not installed.
        """
        data = read_verified(path, expected)
        try:
            from tokenizers import Tokenizer as Inner
        except ImportError:
            raise UsageError(
                "the package tokenizers is not installed, which reads the model's tokenizer",
                "pip install 'auditspec[language]'",
            ) from None
        try:
            inner = Inner.from_buffer(data)
        except Exception as error:  # whatever the library makes of other files
            raise EvidenceError(
                f"{path}: no tokenizer: {error}", "name the model's tokenizer.json"
            ) from None
        inner.no_padding()
        inner.no_truncation()
        return cls(inner)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text, without special tokens but those that stand in it."""
        return tuple(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def token(self, text: str) -> int | None:
        """The id of one token; None where no token is called so."""
        found: int | None = self._inner.token_to_id(text)
        return found
