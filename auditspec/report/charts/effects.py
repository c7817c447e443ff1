"""Effect of every stage on one behaviour: a dot on its simultaneous interval."""

from __future__ import annotations

from typing import Any

from auditspec.report.charts.kit import MAX_STAGES, across, beside, flat, towards, upright
from auditspec.report.charts.scales import Linear
from auditspec.report.charts.svg import Margins, Pen, Picture
from auditspec.report.concern import exceeds
from auditspec.report.lookup import heading
from auditspec.report.numbers import Unit, declared, interval, signed, unit_of
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
    unit = unit_of(behavior.unit)
    tolerance = behavior.concern.tolerance * unit.scale
    named = {v.behavior: v.parties for v in result.verdicts}.get(behavior.id, ())
    rows = [
        {"y": (index + 0.5) * ROW, "named": effect.stage in named, **_row(effect, behavior)}
        for index, effect in enumerate(effects)
    ]
    ends = [0.0, -tolerance, tolerance, *(r["low"] for r in rows), *(r["high"] for r in rows)]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    x = Linear(min(ends) - pad, max(ends) + pad, 0, WIDTH)
    margins = Margins(LABELS, VALUES, 22, 24)
    picture = Picture(WIDTH, ROW * len(rows), margins)
    across(picture, x, 6)
    picture.box((x(-tolerance), 0, x(tolerance), picture.height), "band")
    upright(picture, x(0), Pen("mark"))
    for row in rows:
        ends_of_row = ((x(row["low"]), row["y"]), (x(row["high"]), row["y"]))
        picture.lines([ends_of_row], Pen(row["tone"], 2))
    for row in rows:
        picture.mark((x(row["value"]), row["y"]), 62, row["fill"], Pen(row["tone"], 2))
        beside(picture, row, row["stage"], margins)
    towards(picture, behavior.concern)
    name = clean(behavior.id, SHORT)
    moved = "; ".join(f"{row['stage']} {row['text']}" for row in rows)
    return picture.drawn(
        key,
        f"Effect of each training stage on {name}, in {unit.change}, with simultaneous intervals; "
        "the effects table in the appendix holds the values",
        f"Tolerance {declared(tolerance)} {unit.change} either way. {moved}.",
    )


def _row(effect: Effect, behavior: BehaviorResult) -> dict[str, Any]:
    """What is drawn of an effect."""
    unit = unit_of(behavior.unit)
    tone = ("improve", "mark", "concern")[exceeds(effect, behavior) + 1]
    low = effect.value if effect.low is None else effect.low
    high = effect.value if effect.high is None else effect.high
    return {
        "stage": heading(effect),
        "value": effect.value * unit.scale,
        "low": low * unit.scale,
        "high": high * unit.scale,
        "tone": tone,
        "fill": tone if effect.exact else "paper",
        "text": _value(effect, unit),
    }


def _value(effect: Effect, unit: Unit) -> str:
    ends = flat(interval(effect, "", unit))
    return flat(signed(effect, "", unit)) + ("" if ends == "–" else f"  ({ends})")
