"""Effect of every stage on one behaviour: a dot on its simultaneous interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from auditspec.report.charts.kit import (
    MAX_STAGES,
    Row,
    data,
    fill,
    flat,
    layer,
    stroke,
    towards,
    x_at,
)
from auditspec.report.charts.svg import draw
from auditspec.report.concern import exceeds
from auditspec.report.lookup import heading
from auditspec.report.numbers import Unit, declared, interval, signed, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Effect

LABELS, WIDTH, VALUES = 132, 344, 164
"""Widths of the three columns: stage, plot, value; in CSS pixels."""
ROW = 25


def effect_chart(result: AuditResult, behavior: BehaviorResult, key: str) -> str:
    """Effect of every stage on one behaviour: a dot on its simultaneous interval."""
    effects = [e for e in result.effects if e.behavior == behavior.id][:MAX_STAGES]
    if not effects:
        return ""
    ink, unit = colours(), unit_of(behavior.unit)
    tolerance = behavior.concern.tolerance * unit.scale
    named = {v.behavior: v.parties for v in result.verdicts}.get(behavior.id, ())
    rows = [
        {"y": (index + 0.5) * ROW, "named": effect.stage in named, **_row(effect, behavior)}
        for index, effect in enumerate(effects)
    ]
    height = ROW * len(rows)
    ends = [0.0, -tolerance, tolerance, *(r["low"] for r in rows), *(r["high"] for r in rows)]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    x = alt.X(
        "value:Q",
        scale=alt.Scale(domain=[min(ends) - pad, max(ends) + pad], nice=False),
        axis=alt.Axis(title=None, tickCount=6, labelPadding=5),
    )
    y = alt.Y("y:Q", scale=None, axis=None)
    table = data(rows)
    layers = [
        data([{"value": -tolerance, "high": tolerance}])
        .mark_rect(color=ink["band"])
        .encode(x=x, x2=alt.X2("high:Q")),
        data([{"value": 0}]).mark_rule(color=ink["mark"], strokeWidth=1).encode(x=x),
        table.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q"), x2=alt.X2("high:Q"), y=y, stroke=stroke("tone")
        ),
        table.mark_point(size=62, strokeWidth=2, opacity=1).encode(
            x=x, y=y, stroke=stroke("tone"), fill=fill("fill")
        ),
        *_names(rows, ink["ink"]),
        _label(table, WIDTH + 14, "text", align="left", color=ink["ink"], limit=VALUES - 16),
        towards(behavior.concern, WIDTH),
    ]
    chart = layer(layers, WIDTH, height, {"left": LABELS, "right": VALUES, "top": 22, "bottom": 24})
    name = clean(behavior.id, SHORT)
    moved = "; ".join(f"{row['stage']} {row['text']}" for row in rows)
    return draw(
        chart,
        key,
        f"Effect of each training stage on {name}, in {unit.change}, with simultaneous intervals; "
        "the effects table in the appendix holds the values",
        f"Tolerance {declared(tolerance)} {unit.change} either way. {moved}.",
    )


def _row(effect: Effect, behavior: BehaviorResult) -> dict[str, Any]:
    """What is drawn of an effect."""
    ink, unit = colours(), unit_of(behavior.unit)
    tone = ink[("improve", "mark", "concern")[exceeds(effect, behavior) + 1]]
    low = effect.value if effect.low is None else effect.low
    high = effect.value if effect.high is None else effect.high
    return {
        "stage": heading(effect),
        "value": effect.value * unit.scale,
        "low": low * unit.scale,
        "high": high * unit.scale,
        "tone": tone,
        "fill": tone if effect.exact else ink["paper"],
        "text": _value(effect, unit),
    }


def _names(rows: Sequence[Row], ink: str) -> list[Any]:
    """The stages' names left of the plot; the named stages in bold."""
    return [
        _label(
            data([row for row in rows if row["named"] is named]),
            -14,
            "stage",
            align="right",
            color=ink,
            limit=LABELS - 18,
            fontWeight="bold" if named else "normal",
        )
        for named in (False, True)
    ]


def _label(data: Any, x: float, field: str, **style: Any) -> Any:
    return data.mark_text(fontSize=11, **style).encode(
        x=x_at(x), y=alt.Y("y:Q", scale=None, axis=None), text=alt.Text(f"{field}:N")
    )


def _value(effect: Effect, unit: Unit) -> str:
    ends = flat(interval(effect, "", unit))
    return flat(signed(effect, "", unit)) + ("" if ends == "–" else f"  ({ends})")
