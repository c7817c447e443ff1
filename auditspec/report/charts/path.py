"""The level of one behaviour along the recorded run, state by state, with the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auditspec.estimator.interventions import is_stage
from auditspec.report.charts.kit import MAX_STAGES, across, beside, flat, towards, upright
from auditspec.report.charts.scales import Linear, Scale
from auditspec.report.charts.svg import Margins, Pen, Picture
from auditspec.report.lookup import Lookup, arm_in_words, at, party_of
from auditspec.report.numbers import Unit, level, unit_of
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
    known, unit = Lookup(result), unit_of(behavior.unit)
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
        row |= {
            "tone": "concern" if beyond else "accent",
            "fill": "",
            "named": row["party"] in named,
        }
    without = _rows(other[0], states, unit) if other else []
    lines = _lines(behavior, unit)
    low, high = _domain(rows, [*(row["value"] for row in without), *lines])
    outside = [row for row in rows if not low <= row["value"] <= high]
    for row in outside:
        left = row["value"] < low
        row |= {"value": low if left else high, "shape": "left" if left else "right"}
    x, margins = Linear(low, high, 0, WIDTH), Margins(LABELS, VALUES, 22, 24)
    picture = Picture(WIDTH, ROW * len(rows), margins)
    across(picture, x, 6)
    _draw_limit(picture, lines, x)
    _draw_run(picture, without, x, Pen("muted", 1.5, "3,3"))
    _draw_run(picture, rows, x, Pen("mark", 1.5))
    for row in (*without, *rows):
        at = (x(row["value"]), row["y"])
        picture.mark(at, 46, row["fill"] or row["tone"], Pen(row["tone"], 1.5), row["shape"])
    for row in rows:
        beside(picture, row, row["name"], margins)
    towards(picture, behavior.concern)
    told = "; ".join(f"{row['name']} {row['text']}" for row in rows)
    caption = _caption(
        behavior, arm_in_words(other[0].arm) if without and other else "", len(path.states), outside
    )
    return (
        picture.drawn(
            key,
            f"Level of {clean(behavior.id, SHORT)} along the recorded run; "
            "the tables of levels in the appendix hold the values",
            f"{told}.",
        ),
        caption,
    )


def _rows(path: Path, states: Sequence[str], unit: Unit) -> list[dict[str, Any]]:
    """One row for every state that the path holds, at its place in `states`."""
    levels = dict(zip(path.states, path.levels, strict=False))
    return [
        {
            "y": (place + 0.5) * ROW,
            "name": at(state),
            "party": party_of(state),
            "level": levels[state],
            "value": levels[state] * unit.scale,
            "text": flat(level(levels[state], "", unit)),
            "tone": "muted",
            "fill": "paper",
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


def _lines(behavior: BehaviorResult, unit: Unit) -> tuple[float, ...]:
    """Where the limit lies, and the limit less the tolerance, from which the excess is counted."""
    concern = behavior.concern
    if concern.limit is None:
        return ()
    zero = concern.limit - concern.signed(concern.tolerance)
    return (concern.limit * unit.scale, zero * unit.scale)


def _draw_limit(picture: Picture, lines: Sequence[float], x: Scale) -> None:
    if lines:
        picture.box((x(min(lines)), 0, x(max(lines)), picture.height), "band")
        for line, pen in zip(lines, (Pen("concern", 1.5), Pen("concern", dash="4,3")), strict=True):
            upright(picture, x(line), pen)


def _draw_run(picture: Picture, rows: Sequence[dict[str, Any]], x: Scale, pen: Pen) -> None:
    """The line through a run's states, in order of time."""
    if len(rows) > 1:
        picture.lines([[(x(row["value"]), row["y"]) for row in rows]], pen)


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
