"""Error against gradients and against processor time, one panel per setting: where each rung of the ladder stands, on small and larger models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from .bars import Result, runs
from .metrics import median
from .settings.larger import LARGER
from .vega import FONT, draw

SHOWN = {
    "none": ("none", "baseline"),
    "checkpoint-difference": ("checkpoint diff.", "baseline"),
    "gradient-dot-products": ("gradient dots", "baseline"),
    "first-order": ("first-order", "linear"),
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
    "sub-batch replay": ("#009e73", "diamond"),
}
"""Family -> (colour, shape): both tell, so that a print in grey reads as well (Okabe & Ito 2008)."""
COLUMNS, WIDTH, HEIGHT = 3, 260, 200
SIZE, LETTER, LINE, GAP = 9, 4.6, 11, 6
"""Of labels, in pixels: font size, width of a letter, height of a line, distance from the dot."""
LOW, HIGH = 0.002, 30.0
AXES = {"cost": "gradients, exact replay = 1", "cpu_ratio": "processor time, exact replay = 1"}
"""What a cost can be, and its title."""
TICKS = [0, 0.25, 1, 2, 5, 10, 20]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw_ladder(result: Result, larger: Result, cost: str = "cost") -> str:
    """The SVG of all settings that ran.

    Args:
        result: of the ladder.
        larger: of the larger models.
        cost: one of `AXES`.
    """
    panels = [
        (held["title"], points)
        for name, held in result["settings"].items()
        if (points := _points(result, name, cost))
    ]
    panels += [
        (LARGER[name].title, _larger_points(seeds.values(), larger["share"], cost))
        for name, seeds in larger["settings"].items()
    ]
    largest = max((p["cost"] for _, points in panels for p in points), default=1.0)
    charts = [_panel(title, points, largest, AXES[cost]) for title, points in panels]
    grid = alt.vconcat(
        *(
            alt.hconcat(*charts[at : at + COLUMNS], spacing=26)
            for at in range(0, len(charts), COLUMNS)
        ),
        spacing=24,
    )
    return draw(
        themed(grid),
        "ladder",
        f"Error of every estimator against its cost, per setting: {AXES[cost]}",
        "Each panel is a setting, the last ones larger models. To the left cheaper, downwards more exact. Grey squares: "
        "baselines; orange triangles: linear estimators; blue circles: paired replay; green diamonds: sub-batch replay. "
        "The dashed line at error 1 is what predicting no effect scores.",
    )


def _points(result: Result, setting: str, cost: str) -> list[dict[str, Any]]:
    """Median error over the middle stages and cost of each estimator that ran."""
    found = []
    for name, (label, family) in SHOWN.items():
        held = [run for _, run in runs(result, name, setting)]
        if not held:
            continue
        error = median([run["error_middle"] for run in held])
        found.append(_point(label, family, median([run[cost] for run in held]), error))
    return found


def _larger_points(
    seeds: Iterable[dict[str, Any]], share: float, cost: str
) -> list[dict[str, Any]]:
    """The same of a larger model, whose estimators got `share` of the gradients, error estimate included."""
    found, ran = [], [seed["estimators"] for seed in seeds]
    for name, family in (
        ("paired-replay", "paired replay"),
        ("sub-batch-replay", "sub-batch replay"),
    ):
        held = [one[name] for one in ran if "refused" not in one[name]]
        if held:
            spent = share if cost == "cost" else median([run["cpu_ratio"] for run in held])
            error = median([run["row_error_middle"] for run in held])
            label = name.removesuffix("-replay") + " 1/4, twin"
            found.append(_point(label, family, spent, error))
    return found


def _point(label: str, family: str, cost: float, error: float) -> dict[str, Any]:
    colour, shape = FAMILIES[family]
    error = min(max(error, LOW), HIGH)
    return {"label": label, "colour": colour, "shape": shape, "cost": cost, "error": error}


def _panel(title: str, points: list[dict[str, Any]], largest: float, axis_title: str) -> Any:
    rows = _placed(points, 1.1 * largest)

    def x(field: str) -> Any:
        scale = alt.Scale(type="sqrt", domain=[0, 1.1 * largest], nice=False)
        axis = alt.Axis(values=TICKS, labelExpr="datum.value")
        return alt.X(f"{field}:Q", scale=scale, axis=axis, title=axis_title)

    def y(field: str) -> Any:
        scale = alt.Scale(type="log", domain=[LOW, HIGH])
        axis = alt.Axis(values=[0.01, 0.1, 1, 10], labelExpr="datum.value")
        return alt.Y(f"{field}:Q", scale=scale, axis=axis, title="error, middle stages")

    colour = alt.Color("colour:N", scale=None, legend=None)
    chart = alt.Chart(alt.InlineData(values=rows))
    dots = chart.mark_point(filled=True, size=45, opacity=1).encode(
        x=x("cost"),
        y=y("error"),
        shape=alt.Shape("shape:N", scale=None, legend=None),
        color=colour,
    )
    words = chart.mark_text(align="left", fontSize=SIZE).encode(
        x=x("left"),
        y=y("height"),
        text="label:N",
        color=colour,
    )
    one = (
        alt.Chart(alt.InlineData(values=[{"error": 1}]))
        .mark_rule(strokeDash=[4, 3], stroke="#7f7f7f")
        .encode(y=y("error"))
    )
    return (one + dots + words).properties(
        width=WIDTH, height=HEIGHT, title=alt.TitleParams(title, fontSize=12, anchor="start")
    )


def _placed(points: Sequence[dict[str, Any]], widest: float) -> list[dict[str, Any]]:
    """The points with a place for each label, beside its dot, clear of dots and other labels.

    Args:
        points: with `cost`, `error`, and `label`.
        widest: cost at the panel's right edge.

    Returns:
        The points with `left` and `height`: where the label begins, in the units of the two axes.
    """
    dots = [
        (
            WIDTH * math.sqrt(point["cost"] / widest),
            HEIGHT * math.log(HIGH / point["error"]) / math.log(HIGH / LOW),
        )
        for point in points
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    placed = []
    for point, (x, y) in reversed(list(zip(points, dots, strict=True))):
        width = len(point["label"]) * LETTER
        boxes = [
            (left, y + down - LINE / 2, left + width, y + down + LINE / 2)
            for down in (0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE)
            for left in (x + GAP, x - GAP - width)
        ]
        inside = [b for b in boxes if b[0] >= 2 and b[2] <= WIDTH and b[1] >= 0 and b[3] <= HEIGHT]
        box = min(inside or boxes, key=lambda b: sum(_overlap(b, other) for other in taken))
        taken.append(box)
        height = HIGH * math.exp(-(box[1] + box[3]) / 2 * math.log(HIGH / LOW) / HEIGHT)
        placed.append(point | {"left": (box[0] / WIDTH) ** 2 * widest, "height": height})
    return placed


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def themed(grid: Any) -> dict[str, Any]:
    """The Vega-Lite specification of a grid of charts, in the benchmarks' colours."""
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
    return specification
