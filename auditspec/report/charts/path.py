"""The level of one behaviour along the recorded run, state by state, with the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from auditspec.estimator.interventions import is_stage
from auditspec.report.charts.kit import (
    MAX_STAGES,
    data,
    fill,
    flat,
    layer,
    stroke,
    towards,
    x_at,
)
from auditspec.report.charts.svg import draw
from auditspec.report.lookup import Lookup, arm_in_words, at, party_of
from auditspec.report.numbers import Unit, level, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Path

LABELS, WIDTH, VALUES = 176, 344, 120
"""Widths of the three columns: state, plot, level; in CSS pixels."""
ROW = 22
FAR = 3.0
"""Ranges of the trained states and the limit beyond which a beginning is drawn at the edge."""
MAX_STATES = 2 * MAX_STAGES
"""Most rows of the picture; the tables of levels hold the rest."""


def path_chart(result: AuditResult, behavior: BehaviorResult, key: str) -> tuple[str, str]:
    """The recorded run from top to bottom, beside it the run without the stages that are named.

    Returns:
        The picture and its caption; both empty where no path is known.
    """
    known, ink, unit = Lookup(result), colours(), unit_of(behavior.unit)
    recorded = known.path(behavior.id)
    if recorded is None or not recorded[0].states:
        return "", ""
    path = recorded[0]
    verdict, _ = known.verdicts.entry(behavior.id)
    named = verdict.parties if verdict else ()
    stages = sorted(party for party in named if is_stage(party))
    other = known.path(behavior.id, *(f"omit {stage}" for stage in stages)) if stages else None
    states = path.states[:MAX_STATES]
    rows = _rows(path, states, unit)
    for row in rows:
        beyond = behavior.model_copy(update={"value": row["level"]}).beyond
        row |= {"tone": ink["concern" if beyond else "accent"], "named": row["party"] in named}
    without = _rows(other[0], states, unit) if other else []
    lines = _lines(behavior, unit)
    low, high = _domain(rows, [row["value"] for row in (*without, *lines)])
    outside = [row for row in rows if not low <= row["value"] <= high]
    for row in outside:
        left = row["value"] < low
        row |= {"value": low if left else high, "shape": f"triangle-{'left' if left else 'right'}"}
    x = alt.X(
        "value:Q",
        scale=alt.Scale(domain=[low, high], nice=False),
        axis=alt.Axis(title=None, tickCount=6, labelPadding=5),
    )
    height = ROW * len(rows)
    layers = [
        *_limit(lines, x, ink),
        *_run(without, x, ink["muted"], strokeDash=[3, 3]),
        *_run(rows, x, ink["mark"]),
        *_dots(without, x, stroke_="tone", fill_="paper"),
        *_dots(rows, x, stroke_="tone", fill_="tone"),
        *_texts(rows, ink["ink"]),
        towards(behavior.concern, WIDTH),
    ]
    chart = layer(layers, WIDTH, height, {"left": LABELS, "right": VALUES, "top": 22, "bottom": 24})
    told = "; ".join(f"{row['name']} {row['text']}" for row in rows)
    caption = _caption(
        behavior, arm_in_words(other[0].arm) if without and other else "", len(path.states), outside
    )
    return (
        draw(
            chart,
            key,
            f"Level of {clean(behavior.id, SHORT)} along the recorded run; "
            "the tables of levels in the appendix hold the values",
            f"{told}.",
        ),
        caption,
    )


def _rows(path: Path, states: Sequence[str], unit: Unit) -> list[dict[str, Any]]:
    """One row for every state that the path holds, at its place in `states`."""
    ink, levels = colours(), dict(zip(path.states, path.levels, strict=False))
    return [
        {
            "y": (place + 0.5) * ROW,
            "order": place,
            "name": at(state),
            "party": party_of(state),
            "level": levels[state],
            "value": levels[state] * unit.scale,
            "text": flat(level(levels[state], "", unit)),
            "tone": ink["muted"],
            "paper": ink["paper"],
            "shape": "circle",
        }
        for place, state in enumerate(states)
        if state in levels
    ]


def _domain(rows: Sequence[dict[str, Any]], others: Sequence[float]) -> tuple[float, float]:
    """From where to where is drawn: a beginning far from everything that was trained does not set the scale."""
    trained = [row["value"] for row in rows if is_stage(row["party"])] or [rows[0]["value"]]
    low, high = min(*trained, *others, trained[0]), max(*trained, *others, trained[0])
    reach = FAR * (high - low)
    kept = [
        row["value"] for row in rows if low - reach <= row["value"] <= high + reach or not reach
    ]
    low, high = min(low, *kept), max(high, *kept)
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def _lines(behavior: BehaviorResult, unit: Unit) -> list[dict[str, Any]]:
    """Where the limit lies, and the limit less the tolerance, from which the excess is counted."""
    concern = behavior.concern
    if concern.limit is None:
        return []
    zero = concern.limit - concern.signed(concern.tolerance)
    return [{"value": concern.limit * unit.scale}, {"value": zero * unit.scale}]


def _limit(lines: Sequence[dict[str, Any]], x: Any, ink: dict[str, str]) -> list[Any]:
    if not lines:
        return []
    low, high = sorted(line["value"] for line in lines)
    return [
        data([{"value": low, "high": high}])
        .mark_rect(color=ink["band"])
        .encode(x=x, x2=alt.X2("high:Q")),
        data(lines[:1]).mark_rule(color=ink["concern"], strokeWidth=1.5).encode(x=x),
        data(lines[1:])
        .mark_rule(color=ink["concern"], strokeWidth=1, strokeDash=[4, 3])
        .encode(x=x),
    ]


def _run(rows: Sequence[dict[str, Any]], x: Any, colour: str, **style: Any) -> list[Any]:
    """The line through a run's states, in order of time."""
    if len(rows) < 2:
        return []
    line = data(rows).mark_line(color=colour, strokeWidth=1.5, **style)
    return [line.encode(x=x, y=alt.Y("y:Q", scale=None, axis=None), order="order:Q")]


def _dots(rows: Sequence[dict[str, Any]], x: Any, *, stroke_: str, fill_: str) -> list[Any]:
    y = alt.Y("y:Q", scale=None, axis=None)
    return [
        data(points)
        .mark_point(size=46, strokeWidth=1.5, opacity=1, shape=shape)
        .encode(x=x, y=y, stroke=stroke(stroke_), fill=fill(fill_))
        for shape in ("circle", "triangle-left", "triangle-right")
        if (points := [row for row in rows if row["shape"] == shape])
    ]


def _texts(rows: Sequence[dict[str, Any]], ink: str) -> list[Any]:
    """Names left of the plot, those whose turn a verdict names in bold; levels right of it."""
    y = alt.Y("y:Q", scale=None, axis=None)
    return [
        data([row for row in rows if row["named"] is bold])
        .mark_text(
            fontSize=11, align=align, fill=ink, limit=width, fontWeight="bold" if bold else "normal"
        )
        .encode(x=x_at(place), y=y, text=alt.Text(f"{field}:N"))
        for bold in (False, True)
        for field, place, align, width in (
            ("name", -14, "right", LABELS - 18),
            ("text", WIDTH + 14, "left", VALUES - 16),
        )
    ]


def _caption(
    behavior: BehaviorResult, other: str, states: int, outside: Sequence[dict[str, Any]]
) -> str:
    """What the marks mean, and what the picture leaves out."""
    parts = ["Level along the recorded run, from top to bottom."]
    if behavior.concern.limit is None:
        parts.append("No limit is stated.")
    else:
        parts.append(
            "Solid line: the limit; shaded up to the dashed line: the tolerance. The excess is counted from "
            "the dashed line."
        )
    if other:
        parts.append(f"Hollow: the run {other}.")
    if outside:
        parts.append("A triangle: the level lies outside of the picture.")
    if states > MAX_STATES:
        parts.append(f"The first {MAX_STATES} of {states} states are drawn.")
    return " ".join(parts)
