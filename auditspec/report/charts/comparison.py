"""Estimates beside what they are held against: exact replay, or random displacements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from auditspec.report.charts.kit import (
    data,
    fill,
    layer,
    stroke,
    x_at,
)
from auditspec.report.charts.svg import draw
from auditspec.report.numbers import significant, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, CheckDetail, CheckResult

LABELS, WIDTH, VALUES = 190, 256, 194
"""Widths of the three columns: stage and behaviour, plot, value; in CSS pixels."""
ROW, MAX_LINES = 22, 30
"""Height of a line, and the most of them."""
MAX_TICKS = 100
"""Most draws that a line shows."""


def replay_chart(result: AuditResult, check: CheckResult, key: str) -> str:
    """Every replayed effect: hollow the estimate, filled the exact one."""
    lines = [d for d in check.details if d.estimate is not None and d.reference is not None]
    rows = _rows(result, lines)
    if not rows:
        return ""
    ink = colours()
    for row, line in zip(rows, lines, strict=False):
        row["tone"] = ink["concern" if line.outcome == "fail" else "accent"]
        row["paper"] = ink["paper"]
    table, x, y = data(rows), _across("estimate"), _down()
    layers = [
        table.mark_rule(strokeWidth=2).encode(
            x=x, x2=alt.X2("reference:Q"), y=y, stroke=stroke("tone")
        ),
        table.mark_point(size=70, strokeWidth=2, opacity=1).encode(
            x=x, y=y, stroke=stroke("tone"), fill=fill("paper")
        ),
        table.mark_point(size=34, strokeWidth=0, opacity=1).encode(
            x=_across("reference"), y=y, fill=fill("tone")
        ),
    ]
    told = "; ".join(f"{row['name']}: estimate {row['text']}" for row in rows)
    title = "Estimated effects beside their exact replay, each in shares of its behaviour's largest effect"
    return _drawn(layers, rows, key, title, told)


def placebo_chart(result: AuditResult, check: CheckResult, key: str) -> str:
    """Every effect, a dot, among the effects of random displacements as large, ticks."""
    lines = [d for d in check.details if d.estimate is not None and d.draws]
    rows = _rows(result, lines)
    if not rows:
        return ""
    ink = colours()
    ticks: list[dict[str, Any]] = []
    for row, line in zip(rows, lines, strict=False):
        row["tone"] = ink["concern" if line.outcome == "fail" else "accent"]
        ticks += [
            {"draw": value / row["scale"], "y": row["y"]}
            for value in line.draws[:: -(-len(line.draws) // MAX_TICKS)]
        ]
    y = _down()
    layers = [
        data(ticks)
        .mark_tick(color=ink["muted"], thickness=1, bandSize=11, opacity=0.55, orient="vertical")
        .encode(x=_across("draw"), y=y),
        data(rows)
        .mark_point(size=52, strokeWidth=0, opacity=1)
        .encode(x=_across("estimate"), y=y, fill=fill("tone")),
    ]
    told = "; ".join(f"{row['name']}: {row['text']}" for row in rows)
    title = "Effects among those of random displacements of the same size, each line in shares of its largest"
    return _drawn(layers, rows, key, title, told)


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


def _across(field: str) -> Any:
    return alt.X(
        f"{field}:Q",
        scale=alt.Scale(domain=[-1.08, 1.08], nice=False),
        axis=alt.Axis(title=None, tickCount=5, labelPadding=5, format="~g"),
    )


def _down() -> Any:
    return alt.Y("y:Q", scale=None, axis=None)


def _drawn(
    layers: list[Any], rows: Sequence[Mapping[str, Any]], key: str, title: str, told: str
) -> str:
    ink, table = colours(), data(list(rows))
    zero = data([{"zero": 0}]).mark_rule(color=ink["mark"], strokeWidth=1).encode(x=_across("zero"))
    labels = [
        table.mark_text(fontSize=11, align=align, fill=ink["ink"], limit=limit).encode(
            x=x_at(at), y=_down(), text=alt.Text(f"{field}:N")
        )
        for at, align, field, limit in (
            (-14, "right", "name", LABELS - 18),
            (WIDTH + 14, "left", "text", VALUES - 16),
        )
    ]
    padding = {"left": LABELS, "right": VALUES, "top": 8, "bottom": 24}
    chart = layer([zero, *layers, *labels], WIDTH, ROW * len(rows), padding)
    return draw(chart, key, title, f"{told}.")
