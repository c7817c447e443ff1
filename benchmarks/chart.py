"""Error against cost, one panel per setting: where each rung of the ladder stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from auditspec.report.charts.svg import FONT, draw

from .bars import Result, runs
from .metrics import median

SHOWN = {
    "none": ("none", "baseline"),
    "checkpoint-difference": ("checkpoint difference", "baseline"),
    "gradient-dot-products": ("gradient dot products", "baseline"),
    "first-order": ("first-order", "linear"),
    "first-order, plug-in": ("first-order, plug-in", "linear"),
    "displacement": ("displacement", "linear"),
    "krylov": ("krylov", "linear"),
    "paired-replay 1/8": ("paired 1/8", "paired replay"),
    "paired-replay 1/4": ("paired 1/4", "paired replay"),
    "paired-replay 1/2": ("paired 1/2", "paired replay"),
}
"""Estimator -> (label, family)."""
FAMILIES = {
    "baseline": ("#595959", "square"),
    "linear": ("#d55e00", "triangle-up"),
    "paired replay": ("#0072b2", "circle"),
}
"""Family -> (colour, shape): both tell, so that a print in grey reads as well (Okabe & Ito 2008)."""
COLUMNS, WIDTH, HEIGHT = 3, 250, 190
LABEL = 11
"""Pixels between two labels."""
LOW, HIGH = 0.002, 30.0


def draw_ladder(result: Result) -> str:
    """The SVG of all settings that ran."""
    panels = [
        (held["title"], points)
        for name, held in result["settings"].items()
        if (points := _points(result, name))
    ]
    largest = max((p["cost"] for _, points in panels for p in points), default=1.0)
    charts = [_panel(title, points, largest) for title, points in panels]
    grid = alt.vconcat(
        *(
            alt.hconcat(*charts[at : at + COLUMNS], spacing=26)
            for at in range(0, len(charts), COLUMNS)
        ),
        spacing=24,
    )
    specification: dict[str, Any] = (
        grid.configure(background="white", font=FONT)
        .configure_view(stroke="#bfbfbf")
        .configure_axis(
            gridColor="#e6e6e6",
            labelColor="#333333",
            titleColor="#333333",
            titleFontWeight="normal",
            labelFontSize=10,
            titleFontSize=10.5,
        )
        .to_dict()
    )
    return draw(
        specification,
        "ladder",
        "Error of every estimator against its cost, per setting",
        "Each panel is a setting. To the left cheaper, downwards more exact. Grey squares: baselines; "
        "orange triangles: linear estimators; blue circles: paired replay, which stands lowest at a "
        "fraction of exact replay's cost. The dashed line at error 1 is what predicting no effect scores.",
    )


def _points(result: Result, setting: str) -> list[dict[str, Any]]:
    """Median error over the middle stages and cost of each estimator that ran."""
    found = []
    for name, (label, family) in SHOWN.items():
        held = [run for _, run in runs(result, name, setting)]
        if not held:
            continue
        colour, shape = FAMILIES[family]
        error = median([run["error_middle"] for run in held])
        found.append(
            {
                "label": label,
                "colour": colour,
                "shape": shape,
                "cost": median([run["cost"] for run in held]),
                "error": min(max(error, LOW), HIGH),
            }
        )
    return found


def _panel(title: str, points: list[dict[str, Any]], largest: float) -> Any:
    rows = _placed(points, largest)
    x = alt.X(
        "cost:Q",
        title="gradients, exact replay = 1",
        scale=alt.Scale(type="sqrt", domain=[0, largest * 1.35], nice=False),
        axis=alt.Axis(values=[0, 0.25, 1, 2, 5, 10, 20], format="~g"),
    )
    scale = alt.Scale(type="log", domain=[LOW, HIGH])
    axis = alt.Axis(values=[0.01, 0.1, 1, 10], format="~g", title="error, middle stages")
    chart = alt.Chart(alt.InlineData(values=rows))
    dots = chart.mark_point(filled=True, size=55, opacity=1).encode(
        x=x,
        y=alt.Y("error:Q", scale=scale, axis=axis),
        shape=alt.Shape("shape:N", scale=None, legend=None),
        color=alt.Color("colour:N", scale=None, legend=None),
    )
    words = [
        alt.Chart(alt.InlineData(values=[r for r in rows if r["side"] == side]))
        .mark_text(align=side, dx=6 if side == "left" else -6, fontSize=9)
        .encode(
            x=x,
            y=alt.Y("at:Q", scale=scale),
            text="label:N",
            color=alt.Color("colour:N", scale=None, legend=None),
        )
        for side in ("left", "right")
    ]
    one = (
        alt.Chart(alt.InlineData(values=[{"error": 1}]))
        .mark_rule(strokeDash=[4, 3], stroke="#7f7f7f")
        .encode(y=alt.Y("error:Q", scale=scale))
    )
    return (one + dots + words[0] + words[1]).properties(
        width=WIDTH, height=HEIGHT, title=alt.TitleParams(title, fontSize=12, anchor="start")
    )


def _placed(points: Sequence[dict[str, Any]], largest: float) -> list[dict[str, Any]]:
    """The points with a side and a height for each label, so that no two labels overlap."""
    per_pixel = math.log(HIGH / LOW) / HEIGHT
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: -p["error"]):
        side = "right" if point["cost"] > 0.3 * largest else "left"
        pixel = math.log(HIGH / point["error"]) / per_pixel
        taken = [p["pixel"] for p in placed if p["side"] == side]
        pixel = max([pixel, *(t + LABEL for t in taken[-1:])])
        placed.append(
            point | {"side": side, "pixel": pixel, "at": HIGH * math.exp(-pixel * per_pixel)}
        )
    return placed
