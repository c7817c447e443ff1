"""Codes in words: the one place where a message becomes a sentence.

`results.json` holds codes with named values (`messages.Message`); a language's catalogue holds their
sentences. Everything that prints renders through here: the report, the command line, errors that quote a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

from auditspec.errors import UsageError
from auditspec.messages import Message
from auditspec.report.parts import HIDDEN, Phrase
from auditspec.report.words.en import ENGLISH
from auditspec.report.words.language import Language
from auditspec.report.words.template import Filler, UnspeakableError, plain
from auditspec.withheld import is_withheld

__all__ = ["LANGUAGES", "UnspeakableError", "Words", "plain", "text"]

LANGUAGES: Mapping[str, Language] = {language.name: language for language in (ENGLISH,)}
NONE: Mapping[str, str] = {}


@final
class Words:
    """Puts messages into the words of one language.

    Args:
        language: its name.
        vocabulary: templates of the plug-ins' codes, as results.json carries them.

    Raises:
        UsageError: for a language that there is none of.
    """

    def __init__(self, language: str = "en", vocabulary: Mapping[str, str] = NONE) -> None:
        if language not in LANGUAGES:
            raise UsageError(
                f"no words in the language {language!r}", f"one of {', '.join(LANGUAGES)}"
            )
        self._filler = Filler(LANGUAGES[language], vocabulary)

    def sentence(self, message: Message, ref: str) -> Phrase:
        """One message; `ref` points at it in results.json, so that its numbers can be checked.

        Raises:
            UnspeakableError: if it cannot be put into words; so do the methods below.
        """
        return self._filler.sentence(message, ref)

    def clauses(self, messages: Sequence[Message], ref: str) -> Phrase:
        """Several as one text; `ref` points at their list."""
        return self._filler.joined(self.each(messages, ref))

    def each(self, messages: Sequence[Message], ref: str) -> list[Phrase]:
        """Several, one by one; `ref` points at their list."""
        if is_withheld(messages):
            return [(HIDDEN,)]
        return [self.sentence(message, f"{ref}/{i}") for i, message in enumerate(messages)]

    def text(self, *messages: Message) -> str:
        """Messages as one plain text."""
        return plain(self.clauses(messages, ""))


def text(messages: Message | Iterable[Message], language: str = "en") -> str:
    """Messages of this tool as one plain text."""
    return Words(language).text(*([messages] if isinstance(messages, Message) else messages))
