"""What a displayed value is made of: text, numbers that point into results.json, statuses, code.

Templates print these parts and compute nothing. A `Phrase` is a sequence of parts, so that a
sentence keeps the reference of every number in it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeVar

from auditspec.results import EvidenceState, Outcome, Role, Severity, Verdict
from auditspec.withheld import is_withheld, unless_withheld

T = TypeVar("T")

HIDDEN = "withheld"
"""In the place of a value that is withheld."""
SHORT, LONG = 120, 1200
"""Most characters that a name and a paragraph may show."""
MAX_TOLD = 50
"""Most behaviours that a report tells of; the rest is counted and stays in results.json."""
MAX_ROWS, MAX_EFFECTS, MAX_LEVELS = 60, 360, 300
"""Most rows of a table, most effects, and most levels along runs that a report shows; the rest is counted
and stays in results.json."""


def clean(text: str, limit: int = LONG) -> str:
    """Text that is safe to show: invisible characters made visible, the end cut with an ellipsis.

    Control, format (bidirectional overrides among them), private and surrogate characters appear
    as their code point, for example `‹U+202E›`. White space becomes single spaces. A text that is withheld is the word that says
    so.
    """
    if is_withheld(text):
        return HIDDEN
    words = " ".join(text[: 4 * limit].split())
    shown = "".join(
        f"‹U+{ord(c):04X}›" if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs") else c
        for c in words
    )
    if len(shown) > limit or len(text) > 4 * limit:
        return shown[: limit - 1].rstrip() + "…"
    return shown


def capital(text: str) -> str:
    """The text with a capital letter first."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Number:
    """A number of results.json as it is displayed.

    Attributes:
        text: the magnitude or signed value that is shown, without its unit.
        value: the number exactly as results.json holds it.
        ref: JSON pointer to it (RFC 6901).
        scale: |text| is |value * scale|, rounded to the digits that are shown.
    """

    kind: ClassVar[str] = "number"
    text: str
    value: float
    ref: str
    scale: float = 1.0


@dataclass(frozen=True)
class Status:
    """A status: always a word and a symbol, never a colour alone."""

    kind: ClassVar[str] = "status"
    word: str
    symbol: str
    tone: str
    """Class name of its colour."""


@dataclass(frozen=True)
class Code:
    """A literal: a path, a digest, a command. `full` is what was shortened."""

    kind: ClassVar[str] = "code"
    text: str
    full: str = ""


@dataclass(frozen=True)
class Muted:
    """A remark of less weight."""

    kind: ClassVar[str] = "muted"
    text: str


Part = str | Number | Status | Code | Muted
Phrase = tuple[Part, ...]


@dataclass(frozen=True)
class Fact:
    """A labelled value."""

    label: str
    value: Phrase


@dataclass(frozen=True)
class Column:
    """A column of a table; numeric columns are aligned to the right."""

    label: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of phrases; the first cell of a row is its header."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Phrase, ...], ...]
    more: int = 0
    """Rows that are only in results.json."""


def table(
    caption: str,
    columns: Sequence[Column],
    items: Sequence[T],
    row: Callable[[int, T], tuple[Phrase, ...]],
) -> Table:
    """A table with one row per item, bounded by `MAX_ROWS`; a row that cannot be told because something is withheld says so."""
    shown = items[:MAX_ROWS]
    hidden: tuple[Phrase, ...] = ((HIDDEN,),) * len(columns)
    rows = tuple(
        unless_withheld(partial(row, index, item), hidden) for index, item in enumerate(shown)
    )
    return Table(caption, tuple(columns), rows, len(items) - len(shown))


VERDICTS: dict[Verdict, Status] = {
    "attributed": Status("Answerable", "●", "attributed"),
    "shared": Status("Answerable: several", "◐", "shared"),
    "one-or-more": Status("One or more of", "◔", "shared"),
    "absent": Status("Within the limit", "✓", "good"),
    "no-effect": Status("No worse than the run’s own best state", "△", "none"),
    "inconclusive": Status("Inconclusive", "?", "open"),
}
INHERITED = Status("Inherited", "●", "attributed")
"""In place of `Answerable` where that is the initial weights."""
INTRODUCED = Status("Introduced between stages", "●", "attributed")
"""In place of `Answerable` where that is a change of the model between two stages."""
HELD_BACK = Status("Within the limit", "○", "none")
"""In place of the green one where a gate did not pass, or the limit is not stated."""
WITHHELD = Status("Withheld", "–", "none")
"""Where a verdict, the gate, or another status is withheld."""
ROLES: dict[Role, Status] = {
    "cause": Status("Cause", "●", "attributed"),
    "joint-cause": Status("Joint cause", "◐", "shared"),
    "inherited": Status("Inherited", "◆", "attributed"),
    "introduced": Status("Introduced", "◈", "attributed"),
    "one-or-more": Status("One or more of these", "◔", "shared"),
    "contributor": Status("Contributor", "▲", "none"),
    "enabler": Status("Enabler", "◇", "none"),
    "masks": Status("Works against it", "▽", "none"),
    "repaired": Status("Repaired", "▿", "none"),
    "none": Status("No part found", "–", "none"),
    "undetermined": Status("Undetermined", "?", "open"),
}
OUTCOMES: dict[Outcome, Status] = {
    "pass": Status("Pass", "✓", "good"),
    "fail": Status("Fail", "✗", "bad"),
    "inconclusive": Status("Inconclusive", "?", "open"),
    "not-run": Status("Not run", "–", "none"),
}
EVIDENCE: dict[EvidenceState, Status] = {
    "verified": Status("Verified", "✓", "good"),
    "declared": Status("Declared", "○", "none"),
    "missing": Status("Missing", "–", "bad"),
    "mismatched": Status("Mismatched", "✗", "bad"),
}
SEVERITY: dict[Severity, Status] = {
    "low": Status("Low", "▪", "none"),
    "medium": Status("Medium", "▪▪", "none"),
    "high": Status("High", "▪▪▪", "none"),
    "critical": Status("Critical", "▪▪▪▪", "none"),
}
GATE: dict[bool, Status] = {
    True: Status("Passed", "✓", "good"),
    False: Status("Not passed", "✗", "bad"),
}
