"""The report's three pictures, declared with Altair and drawn offline.

Each function returns one inline `<svg>`, or an empty string where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import altair as alt

from auditspec.report.numbers import declared, interval, signed, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, Number, Phrase, clean
from auditspec.report.svg import FONT, draw
from auditspec.results import AuditResult, BehaviorResult, Effect

MAX_STAGES, MAX_BEHAVIORS = 24, 30
"""Most columns and rows of a picture; the tables hold the rest."""
LABELS, WIDTH, VALUES = 132, 344, 164
"""Widths of the effect chart's three columns: stage, plot, value; in CSS pixels."""
ROW = 25
STEPS_OF_TOLERANCE = (1.0, 3.0, 10.0)
"""Multiples of the tolerance at which the matrix takes the next colour."""

Row = Mapping[str, Any]


def towards_concern(effect: Effect, behavior: BehaviorResult) -> float:
    """The effect signed so that positive is towards the concern."""
    return effect.value if behavior.concern.direction == "increase" else -effect.value


def exceeds(effect: Effect, behavior: BehaviorResult) -> int:
    """1 where the whole interval lies beyond the tolerance towards the concern, -1 away, else 0."""
    if effect.low is None or effect.high is None:
        return 0
    sign = 1 if behavior.concern.direction == "increase" else -1
    if effect.low > behavior.concern.tolerance:
        return sign
    return -sign if effect.high < -behavior.concern.tolerance else 0


def effect_chart(result: AuditResult, behavior: BehaviorResult, key: str) -> str:
    """Effect of every stage on one behaviour: a dot on its simultaneous interval."""
    effects = [e for e in result.effects if e.behavior == behavior.id][:MAX_STAGES]
    if not effects:
        return ""
    ink, unit = colours(), unit_of(behavior.unit)
    tolerance, scale = behavior.concern.tolerance * unit.scale, unit.scale
    named = {v.behavior: v.stages for v in result.verdicts}.get(behavior.id, ())
    rows = []
    for index, effect in enumerate(effects):
        tone = ink[("improve", "mark", "concern")[exceeds(effect, behavior) + 1]]
        low = effect.value if effect.low is None else effect.low
        high = effect.value if effect.high is None else effect.high
        rows.append(
            {
                "y": (index + 0.5) * ROW,
                "stage": clean(effect.stage, SHORT),
                "named": effect.stage in named,
                "value": effect.value * scale,
                "low": low * scale,
                "high": high * scale,
                "tone": tone,
                "fill": tone if effect.exact else ink["paper"],
                "text": _flat(signed(effect, "", unit)) + _interval(effect, behavior),
            }
        )
    height = ROW * len(rows)
    ends = [0.0, -tolerance, tolerance, *(r["low"] for r in rows), *(r["high"] for r in rows)]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    x = alt.X(
        "value:Q",
        scale=alt.Scale(domain=[min(ends) - pad, max(ends) + pad], nice=False),
        axis=alt.Axis(title=None, tickCount=6, labelPadding=5),
    )
    y = alt.Y("y:Q", scale=None, axis=None)
    data = _data(rows)
    towards = behavior.concern.direction == "increase"
    layers = [
        _data([{"value": -tolerance, "high": tolerance}])
        .mark_rect(color=ink["band"])
        .encode(x=x, x2="high:Q"),
        _data([{"value": 0}]).mark_rule(color=ink["mark"], strokeWidth=1).encode(x=x),
        data.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y, stroke=_literal("tone")
        ),
        data.mark_point(size=62, strokeWidth=2, opacity=1).encode(
            x=x, y=y, stroke=_literal("tone"), fill=_fill("fill")
        ),
        *_names(rows, ink["ink"]),
        _label(data, WIDTH + 14, "text", align="left", color=ink["ink"], limit=VALUES - 16),
        _data([{}])
        .mark_text(
            text="towards the concern →" if towards else "← towards the concern",
            align="right" if towards else "left",
            color=ink["concern"],
            fontSize=10.5,
        )
        .encode(x=alt.value(WIDTH if towards else 0), y=alt.value(-9)),
    ]
    chart = _layer(
        layers, WIDTH, height, {"left": LABELS, "right": VALUES, "top": 22, "bottom": 24}
    )
    name = clean(behavior.id, SHORT)
    moved = "; ".join(f"{row['stage']} {row['text']}" for row in rows)
    return draw(
        chart,
        key,
        f"Effect of each training stage on {name}, in {unit.change}, with simultaneous intervals; "
        "the effects table in the appendix holds the values",
        f"Tolerance {declared(tolerance)} {unit.change} either way. {moved}.",
    )


def matrix_chart(result: AuditResult, key: str) -> str:
    """Behaviours × stages: colour counts tolerances, every cell shows its value."""
    stages = [stage.id for stage in result.stages][:MAX_STAGES]
    behaviors = result.behaviors[:MAX_BEHAVIORS]
    found = {(e.behavior, e.stage): e for e in result.effects}
    if not found or not stages:
        return ""
    ink = colours()
    left, cell_width, cell_height = 168, max(42, round(472 / len(stages))), 36
    named = {(v.behavior, stage) for v in result.verdicts for stage in v.stages}
    cells, labels, told = [], [], []
    for i, behavior in enumerate(behaviors):
        unit = unit_of(behavior.unit)
        row = [found.get((behavior.id, stage)) for stage in stages]
        step = behavior.concern.tolerance or max((abs(e.value) for e in row if e), default=0) / 30
        labels += [
            {"x": left - 14, "y": (i + 0.5) * cell_height - 6, "text": clean(behavior.id, SHORT)},
            {
                "x": left - 14,
                "y": (i + 0.5) * cell_height + 8,
                "text": f"{unit.change}",
                "small": True,
            },
        ]
        for j, effect in enumerate(row):
            ratio = towards_concern(effect, behavior) / step if effect and step else 0.0
            grade = sum(abs(ratio) > k for k in STEPS_OF_TOLERANCE) * (1 if ratio > 0 else -1)
            marked = (behavior.id, stages[j]) in named
            value = _flat(signed(effect, "", unit)) if effect else "–"
            cells.append(
                {
                    "x": left + j * cell_width + 1,
                    "x2": left + (j + 1) * cell_width - 1,
                    "y": i * cell_height + 1,
                    "y2": (i + 1) * cell_height - 1,
                    "xm": left + (j + 0.5) * cell_width,
                    "ym": (i + 0.5) * cell_height,
                    "fill": ink[_grade(grade)],
                    "ink": ink["on-strong" if abs(grade) == 3 else "on-light"],
                    "text": f"● {value}" if marked else value,
                    "marked": marked,
                }
            )
            if effect:
                told.append(f"{clean(behavior.id, SHORT)} by {clean(stages[j], SHORT)} {value}")
    height = cell_height * len(behaviors)
    width = left + cell_width * len(stages)
    heads = [
        {"x": left + (j + 0.5) * cell_width, "y": -10, "text": clean(stage, SHORT)}
        for j, stage in enumerate(stages)
    ]
    at = {"x": alt.X("x:Q", scale=None, axis=None), "y": alt.Y("y:Q", scale=None, axis=None)}
    middle = {"x": alt.X("xm:Q", scale=None), "y": alt.Y("ym:Q", scale=None)}
    plain, marked = ([c for c in cells if c["marked"] is m] for m in (False, True))
    layers = [
        _data(cells).mark_rect().encode(**at, x2="x2:Q", y2="y2:Q", fill=_fill("fill")),
        _data(marked)
        .mark_rect(filled=False, stroke=ink["ink"], strokeWidth=2)
        .encode(**at, x2="x2:Q", y2="y2:Q"),
        _data(plain).mark_text(fontSize=11).encode(**middle, text="text:N", fill=_fill("ink")),
        _data(marked)
        .mark_text(fontSize=11, fontWeight="bold")
        .encode(**middle, text="text:N", fill=_fill("ink")),
        _data(heads)
        .mark_text(fontSize=11, fill=ink["ink"], limit=cell_width - 4)
        .encode(**at, text="text:N"),
        *(
            _data([row for row in labels if bool(row.get("small")) is small])
            .mark_text(
                align="right",
                fontSize=9.5 if small else 11,
                fill=ink["muted" if small else "ink"],
                limit=left - 16,
            )
            .encode(**at, text="text:N")
            for small in (False, True)
        ),
        *_matrix_legend(left, height + 14),
    ]
    chart = _layer(layers, width, height, {"left": 2, "right": 2, "top": 22, "bottom": 42})
    return draw(
        chart,
        key,
        "Effect of every training stage on every behaviour; the effects table in the appendix holds the values",
        f"{'; '.join(told)}.",
    )


def timeline_chart(result: AuditResult, key: str) -> str:
    """Learning rate and training loss along the stages; every stage is equally wide."""
    stages = result.stages[:MAX_STAGES]
    points = [
        {
            "stage": i,
            "x": i + (step + 0.5) / max(1, stage.steps or stage.curve.step[-1] + 1),
            "rate": rate,
            "loss": loss,
        }
        for i, stage in enumerate(stages)
        if stage.curve is not None and stage.curve.step
        for step, rate, loss in zip(
            stage.curve.step, stage.curve.learning_rate, stage.curve.loss, strict=False
        )
    ]
    if not points:
        return ""
    ink = colours()
    peaks = [
        max(p["rate"] for p in points if p["stage"] == i) for i in {p["stage"] for p in points}
    ]
    wide = min(peaks) > 0 and max(peaks) / min(peaks) >= 10
    if wide:
        floor = min(peaks) / 100
        points = [{**p, "rate": max(p["rate"], floor)} for p in points]
    panels = [
        _panel(stages, points, "rate", "learning rate" + (" (log)" if wide else ""), 84, log=wide),
        _panel(stages, [p for p in points if p["loss"] is not None], "loss", "training loss", 104),
    ]
    slot = 560 / len(stages)
    heads = [{"x": i + 0.5, "text": clean(stage.id, SHORT)} for i, stage in enumerate(stages)]
    feet = [
        {"x": i + 0.5, "text": "steps not recorded" if s.steps is None else f"{s.steps:,} steps"}
        for i, s in enumerate(stages)
    ]
    x = alt.X("x:Q")
    panels[0] += (
        _data(heads)
        .mark_text(fontSize=11, fontWeight="bold", fill=ink["ink"], limit=slot - 6)
        .encode(x=x, y=alt.value(-10), text="text:N")
    )
    panels[1] += (
        _data(feet)
        .mark_text(fontSize=10, fill=ink["muted"], limit=slot - 6)
        .encode(x=x, y=alt.value(104 + 13), text="text:N")
    )
    chart = _themed(alt.vconcat(*panels, spacing=14)).to_dict()
    told = "; ".join(
        f"{clean(s.id, SHORT)}: largest learning rate {declared(max(s.curve.learning_rate))}"
        for s in stages
        if s.curve is not None and s.curve.learning_rate
    )
    return draw(chart, key, "Learning rate and training loss along the training stages", f"{told}.")


def _panel(
    stages: Iterable[Any],
    points: list[Row],
    field: str,
    title: str,
    height: int,
    *,
    log: bool = False,
) -> Any:
    ink = colours()
    bands = [{"x": i, "x2": i + 1} for i, _ in enumerate(stages)]
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, len(bands)], nice=False), axis=None)
    y = alt.Y(
        f"{field}:Q",
        scale=alt.Scale(type="log") if log else alt.Scale(zero=True),
        axis=alt.Axis(title=title, tickCount=4, minExtent=44, format="~g", titlePadding=6),
    )
    layers = [
        _data(bands[::2]).mark_rect(color=ink["band"]).encode(x=x, x2="x2:Q"),
        _data(points)
        .mark_line(strokeWidth=1.5, color=ink["accent"], clip=True)
        .encode(x=x, y=y, detail="stage:N"),
    ]
    return alt.layer(*layers).properties(width=560, height=height)


def _matrix_legend(left: float, top: float) -> list[Any]:
    """Seven swatches between `away from the concern` and `towards the concern`."""
    ink, width = colours(), 30
    start = left + 126
    swatches = [
        {
            "x": start + k * width,
            "x2": start + (k + 1) * width - 2,
            "y": top,
            "y2": top + 9,
            "fill": ink[_grade(k - 3)],
        }
        for k in range(7)
    ]
    ticks = [f"{b:g}×" for b in reversed(STEPS_OF_TOLERANCE)] + [
        f"{b:g}×" for b in STEPS_OF_TOLERANCE
    ]
    texts = [
        {"x": start - 8, "y": top + 5, "text": "away from the concern", "align": "right"},
        {"x": start + 7 * width + 6, "y": top + 5, "text": "towards the concern", "align": "left"},
        *(
            {"x": start + (k + 1) * width - 1, "y": top + 18, "text": tick, "align": "center"}
            for k, tick in enumerate(ticks)
        ),
    ]
    at = {"x": alt.X("x:Q", scale=None), "y": alt.Y("y:Q", scale=None)}
    return [
        _data(swatches).mark_rect().encode(**at, x2="x2:Q", y2="y2:Q", fill=_fill("fill")),
        *(
            _data([t for t in texts if t["align"] == align])
            .mark_text(align=align, fontSize=9.5, fill=ink["muted"])
            .encode(**at, text="text:N")
            for align in ("right", "left", "center")
        ),
    ]


def _grade(grade: int) -> str:
    return f"away-{-grade}" if grade < 0 else f"towards-{grade}" if grade else "neutral"


def _names(rows: list[Row], ink: str) -> list[Any]:
    """The stages' names left of the plot; the named stages in bold."""
    return [
        _label(
            _data([row for row in rows if row["named"] is named]),
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
        x=alt.value(x), y=alt.Y("y:Q", scale=None, axis=None), text=f"{field}:N"
    )


def _literal(field: str) -> Any:
    return alt.Stroke(f"{field}:N", scale=None, legend=None)


def _fill(field: str) -> Any:
    return alt.Fill(f"{field}:N", scale=None, legend=None)


def _data(rows: list[Any]) -> Any:
    return alt.Chart(alt.Data(values=rows))


def _layer(
    layers: list[Any], width: float, height: float, padding: dict[str, float]
) -> dict[str, Any]:
    chart = reduce(lambda below, above: below + above, layers)
    chart = chart.properties(width=width, height=height, padding=padding)
    return dict(_themed(chart.properties(autosize="none")).to_dict())


def _themed(chart: Any) -> Any:
    ink = colours()
    return (
        chart.configure(background="transparent", font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=ink["muted"],
            titleColor=ink["muted"],
            gridColor=ink["rule"],
            tickColor=ink["rule"],
            domain=False,
            labelFontSize=10,
            titleFontSize=10.5,
            titleFontWeight="normal",
        )
    )


def _interval(effect: Effect, behavior: BehaviorResult) -> str:
    ends = _flat(interval(effect, "", unit_of(behavior.unit)))
    return "" if ends == "–" else f"  ({ends})"


def _flat(phrase: Phrase) -> str:
    return "".join(part.text if isinstance(part, Number) else str(part) for part in phrase)
