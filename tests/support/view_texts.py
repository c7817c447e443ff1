"""Parts of a view as plain text."""

from __future__ import annotations

from auditspec.report.lookup import Lookup
from auditspec.report.parts import Code, Fact, Muted, Number, Phrase, Status
from auditspec.report.sections.findings import FindingView, finding_view
from auditspec.report.sections.opinion import Opinion, OpinionView
from auditspec.results import AuditResult


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


def opinion(result: AuditResult) -> OpinionView:
    """What the opinion's template prints."""
    return Opinion().view(Lookup(result))


def finding_views(result: AuditResult) -> tuple[FindingView, ...]:
    """Every behaviour as the findings tell it, without the pictures."""
    known = Lookup(result)
    return tuple(finding_view(known, b, index) for index, b in enumerate(result.behaviors))
