"""Estimates beside what they are held against: exact replay, or random displacements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auditspec.report.charts.kit import Row, across, beside, upright
from auditspec.report.charts.scales import Linear
from auditspec.report.charts.svg import Margins, Pen, Picture
from auditspec.report.numbers import significant, unit_of
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, CheckDetail, CheckResult

LABELS, WIDTH, VALUES = 190, 256, 194
"""Widths of the three columns: stage and behaviour, plot, value; in CSS pixels."""
ROW, TICK, MAX_LINES = 22, 11, 30
"""Height of a line and of a tick in it, and the most lines."""
ACROSS = Linear(-1.08, 1.08, 0, WIDTH)
"""Shares of the largest number."""
MARGINS = Margins(LABELS, VALUES, 8, 24)
MAX_TICKS = 100
"""Most draws that a line shows."""


def replay_chart(result: AuditResult, check: CheckResult, key: str) -> str:
    """Every replayed effect: hollow the estimate, filled the exact one."""
    lines = [d for d in check.details if d.estimate is not None and d.reference is not None]
    rows = _rows(result, lines)
    if not rows:
        return ""
    picture = _prepared(rows)
    for row, line in zip(rows, lines, strict=False):
        tone, y = "concern" if line.outcome == "fail" else "accent", row["y"]
        estimate, reference = ACROSS(row["estimate"]), ACROSS(row["reference"])
        picture.lines([((estimate, y), (reference, y))], Pen(tone, 2))
        picture.mark((estimate, y), 70, "paper", Pen(tone, 2))
        picture.mark((reference, y), 34, tone)
    told = "; ".join(f"{row['name']}: estimate {row['text']}" for row in rows)
    title = "Estimated effects beside their exact replay, each in shares of its behaviour's largest effect"
    return picture.drawn(key, title, f"{told}.")


def placebo_chart(result: AuditResult, check: CheckResult, key: str) -> str:
    """Every effect, a dot, among the effects of random displacements as large, ticks."""
    lines = [d for d in check.details if d.estimate is not None and d.draws]
    rows = _rows(result, lines)
    if not rows:
        return ""
    picture = _prepared(rows)
    for row, line in zip(rows, lines, strict=False):
        places = [
            ACROSS(value / row["scale"])
            for value in line.draws[:: -(-len(line.draws) // MAX_TICKS)]
        ]
        ends = (row["y"] - TICK / 2, row["y"] + TICK / 2)
        drawn = [[(x, y) for y in ends] for x in places]
        picture.strokes(drawn, Pen("muted", opacity=0.55))
        tone = "concern" if line.outcome == "fail" else "accent"
        picture.mark((ACROSS(row["estimate"]), row["y"]), 52, tone)
    told = "; ".join(f"{row['name']}: {row['text']}" for row in rows)
    title = "Effects among those of random displacements of the same size, each line in shares of its largest"
    return picture.drawn(key, title, f"{told}.")


def _rows(result: AuditResult, lines: Sequence[CheckDetail]) -> list[dict[str, Any]]:
    """Position, name, and numbers of every line, in shares of the largest number that it shares an axis with."""
    units = {b.id: unit_of(b.unit) for b in result.behaviors}
    largest: dict[str | None, float] = {}
    for line in lines:
        place = line.subject if line.draws else line.behavior
        numbers = [line.estimate, line.reference, *line.draws]
        sizes = [abs(n) for n in numbers if n is not None]
        largest[place] = max(largest.get(place, 0.0), *sizes)
    rows = []
    for index, line in enumerate(lines[:MAX_LINES]):
        scale = largest[line.subject if line.draws else line.behavior] or 1.0
        unit = units.get(line.behavior or "")
        factor, name = (unit.scale, unit.change) if unit else (1.0, "")
        shown = [significant(n * factor) for n in (line.estimate, line.reference) if n is not None]
        rows.append(
            {
                "y": (index + 0.5) * ROW,
                "name": clean(line.subject, SHORT),
                "scale": scale,
                "estimate": (line.estimate or 0.0) / scale,
                "reference": (line.reference or 0.0) / scale,
                "text": clean(f"{', exact '.join(shown)} {name}", SHORT),
            }
        )
    return rows


def _prepared(rows: Sequence[Row]) -> Picture:
    """The axis, the line at zero, and what stands beside the rows."""
    picture = Picture(WIDTH, ROW * len(rows), MARGINS)
    across(picture, ACROSS, 5)
    upright(picture, ACROSS(0), Pen("mark"))
    for row in rows:
        beside(picture, row, row["name"], MARGINS)
    return picture
