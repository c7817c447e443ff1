"""Regular expressions that take time in proportion to the text, whatever it is: those of RE2."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from auditspec.errors import UsageError


class PatternError(Exception):
    """A text that is no regular expression of RE2."""


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """A regular expression, ready to search.

    Raises:
        PatternError: if it is none; RE2 has no look-around and no back-references.
        UsageError: if the package is not installed.
    """
    try:
        import re2  # type: ignore[import-untyped, import-not-found, unused-ignore]  # it has no types, and may be missing
    except ImportError:
        raise UsageError(
            "the package google-re2 is not installed, which matches patterns in linear time",
            "pip install 'auditspec[language]'",
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        raise PatternError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None
