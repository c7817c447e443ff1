"""Parts of a view as plain text."""

from __future__ import annotations

from auditspec.report.parts import Code, Fact, Muted, Number, Phrase, Status


def flat(phrase: Phrase) -> str:
    """A phrase as plain text."""
    words = []
    for part in phrase:
        match part:
            case str():
                words.append(part)
            case Number(text=text) | Code(text=text) | Muted(text=text):
                words.append(text)
            case Status(word=word):
                words.append(word)
    return "".join(words).replace("\N{NO-BREAK SPACE}", " ")


def facts(view: tuple[Fact, ...]) -> dict[str, str]:
    return {fact.label: flat(fact.value) for fact in view}
