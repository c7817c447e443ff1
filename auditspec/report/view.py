"""The view model: every value that a report displays, formatted, and nothing else.

HTML and PDF are printed from one `ReportView`. Its sections are built in `sections`, one file each;
`parts` and `numbers` decide how a value looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from auditspec.plugins import blamed
from auditspec.report.lookup import Lookup
from auditspec.report.parts import SHORT, Code, Fact, Muted, clean
from auditspec.report.sections import Section, sections
from auditspec.report.sections.cover import Cover, cover
from auditspec.report.sections.reproducibility import Reproducibility
from auditspec.results import AuditResult, Withheld


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
    """What is withheld in it, with the reason and the commitment."""
    view: object | None
    """What its template prints; None where all of it is withheld."""


@dataclass(frozen=True)
class ReportView:
    """Everything that the templates print, in the order of the report."""

    cover: Cover
    sections: tuple[SectionView, ...]


def build(result: AuditResult) -> ReportView:
    """Format everything that a report shows of `result`.

    Raises:
        UsageError: if a plug-in's section cannot be used.
    """
    known, every = Lookup(result), sections()
    notices: dict[str, tuple[Fact, ...]] = {}
    for item in result.withheld:
        place = _place(item, every)
        notices[place] = (*notices.get(place, ()), _notice(item))
    whole = {item.what for item in result.withheld}
    shown = []
    for section in every:
        hidden = f"/{section.filled_by}" in whole
        with blamed("sections", section.id, section):
            view = None if hidden else section.view(known)
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


def _place(item: Withheld, every: Sequence[Section]) -> str:
    """The section that says what is withheld: the one that would show it."""
    field = item.what.split("/")[1] if item.what.startswith("/") else ""
    return next((s.id for s in every if field in s.shows), Reproducibility.id)


def _notice(item: Withheld) -> Fact:
    words = (clean(item.reason, 300), Muted("commitment"), Code(clean(item.commitment, 160)))
    return Fact(f"Withheld: {clean(item.what, SHORT)}", words)
