"""The view model: every value that a report displays, formatted, and nothing else.

HTML and PDF are printed from one `ReportView`. Its sections are built in `sections`, one file each;
`parts` and `numbers` decide how a value looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from auditspec.errors import WithheldError
from auditspec.plugins import blamed
from auditspec.report.lookup import Lookup
from auditspec.report.parts import SHORT, Code, Fact, Muted, clean
from auditspec.report.sections import Section, sections
from auditspec.report.sections.cover import Cover, cover
from auditspec.report.sections.reproducibility import Reproducibility
from auditspec.results import AuditResult
from auditspec.withheld import Withheld

MAX_POINTERS = 20
"""Most places of one reason that a section names; all stand in results.json."""


@dataclass(frozen=True)
class SectionView:
    """A section as it is printed."""

    number: str
    """A letter for an appendix."""
    id: str
    title: str
    source: str
    """Of its template; empty: it lies in the templates' folder."""
    withheld: tuple[Fact, ...]
    """What is withheld of what it shows, with the reason, and whether all of it rests on something withheld."""
    view: object | None
    """What its template prints; None where all of it is withheld."""


@dataclass(frozen=True)
class ReportView:
    """Everything that the templates print, in the order of the report."""

    cover: Cover
    sections: tuple[SectionView, ...]


def build(result: AuditResult, digest: str = "") -> ReportView:
    """Format everything that a report shows of `result`, whose results.json has a digest.

    Raises:
        UsageError: if a plug-in's section cannot be used.
    """
    known, every = Lookup(result, digest), sections()
    notices = _notices(result.withheld, every)
    shown = []
    for section in every:
        try:
            with blamed("sections", section.id, section):
                view = section.view(known)
        except WithheldError as error:
            view = None
            rests = Fact("This section", (f"withheld: it rests on {clean(error.pointer, SHORT)}",))
            notices[section.id] = (*notices.get(section.id, ()), rests)
        if view is not None or section.id in notices:
            shown.append((section, view))
    return ReportView(
        cover(known),
        tuple(
            SectionView(
                number,
                section.id,
                section.title,
                section.template,
                notices.get(section.id, ()),
                view,
            )
            for number, (section, view) in zip(
                _numbers([section for section, _ in shown]), shown, strict=True
            )
        ),
    )


def _numbers(shown: Sequence[Section]) -> list[str]:
    """1, 2, … and, for the appendices, A, B, …."""
    main = sum(not section.appendix for section in shown)
    letters = ascii_uppercase[: len(shown) - main]
    return [*(str(number) for number in range(1, main + 1)), *letters]


def _notices(withheld: Sequence[Withheld], every: Sequence[Section]) -> dict[str, tuple[Fact, ...]]:
    """What is withheld, by the section that would show it, and there by the reason that is given."""
    together: dict[str, dict[str, list[str]]] = {}
    for item in withheld:
        field = item.pointer.split("/")[1]
        place = next((s.id for s in every if field in s.shows), Reproducibility.id)
        together.setdefault(place, {}).setdefault(item.reason, []).append(item.pointer)
    return {
        place: tuple(_notice(pointers, reason) for reason, pointers in by_reason.items())
        for place, by_reason in together.items()
    }


def _notice(pointers: Sequence[str], reason: str) -> Fact:
    told = tuple(Code(clean(pointer, SHORT)) for pointer in pointers[:MAX_POINTERS])
    more = len(pointers) - len(told)
    words = f"{f'and {more} more in results.json; ' if more else ''}reason given, which nobody signed: {clean(reason, 300)}"
    return Fact(f"Withheld: {len(pointers)}", (*told, Muted(words)))
