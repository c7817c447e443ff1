"""The study in one picture: what verdicts are worth by the size of the fault, and stated against true errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..chart import themed
from ..vega import draw
from .figures import SETTINGS, Case, cases, widths
from .tables import TITLES, WORDS
from .truth import INNOCENTS

RIGHT, WRONG, OPEN = ("#0072b2", "circle"), ("#d55e00", "triangle-up"), ("#7f7f7f", "square")
"""Colour and shape: both tell, so that a print in grey reads as well (Okabe & Ito 2008)."""
WIDTH, HEIGHT = 300, 150
SMALLEST, LARGEST = 0.02, 200.0
"""In tolerances; what lies beyond is drawn at the edge."""
LEAST, MOST = 1e-4, 100.0


def draw_calibration(result: dict[str, Any]) -> str:
    """The SVG."""
    rows = result["pipelines"]
    panels = [_words(TITLES[setting], cases(rows, setting)) for setting in SETTINGS]
    errors = _errors("Own error of estimated effects", widths(rows))
    grid = alt.vconcat(
        alt.hconcat(*panels[:2], spacing=26),
        alt.hconcat(*panels[2:], spacing=26),
        alt.hconcat(errors, spacing=26),
    )
    return draw(
        themed(grid),
        "calibration",
        "Verdicts against exact retraining, and stated against true errors",
        "Above: every behaviour by its planted fault, in tolerances, and what its verdict is worth; blue "
        "circles: right; orange triangles: an innocent named, or a fault cleared; grey squares: "
        "nothing was claimed. Below: stated against true errors; points above the line are covered.",
    )


def _words(title: str, held: Sequence[Case]) -> Any:
    values = [
        {
            "fault": min(max(c.fault, SMALLEST), LARGEST),
            "word": c.word,
            "colour": _look(c)[0],
            "shape": _look(c)[1],
            "jitter": (i * 0.618) % 1,
        }
        for i, c in enumerate(held)
    ]
    x = alt.X(
        "fault:Q",
        scale=alt.Scale(type="log", domain=[SMALLEST, LARGEST]),
        axis=alt.Axis(values=[0.1, 1, 10, 100], labelExpr="datum.value"),
        title="fault by exact retraining, tolerances",
    )
    dots = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=18, opacity=0.7)
        .encode(
            x=x,
            y=alt.Y("word:N", sort=list(WORDS), title=None),
            yOffset=alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-0.3, 1.3])),
            color=alt.Color("colour:N", scale=None, legend=None),
            shape=alt.Shape("shape:N", scale=None, legend=None),
        )
    )
    one = (
        alt.Chart(alt.InlineData(values=[{"fault": 1}]))
        .mark_rule(strokeDash=[4, 3], stroke="#7f7f7f")
        .encode(x=x)
    )
    return (one + dots).properties(width=WIDTH, height=HEIGHT, title=_title(title))


def _look(case: Case) -> tuple[str, str]:
    if case.word in (*INNOCENTS, "missed"):
        return WRONG
    return OPEN if case.word == "inconclusive" else RIGHT


def _errors(title: str, pairs: Sequence[tuple[float, float]]) -> Any:
    values = [
        {"stated": min(max(s, LEAST), MOST), "true": min(max(t, LEAST), MOST)} for s, t in pairs
    ]
    scale = alt.Scale(type="log", domain=[LEAST, MOST])
    axis = alt.Axis(values=[1e-4, 1e-2, 1, 100], labelExpr="datum.value")
    x = alt.X("true:Q", scale=scale, axis=axis, title="true error, metric's unit")
    y = alt.Y("stated:Q", scale=scale, axis=axis, title="stated")
    dots = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=12, opacity=0.5, color=RIGHT[0])
        .encode(x=x, y=y)
    )
    ends = [{"true": LEAST, "stated": LEAST}, {"true": MOST, "stated": MOST}]
    line = (
        alt.Chart(alt.InlineData(values=ends))
        .mark_line(stroke="#7f7f7f", strokeDash=[4, 3], strokeWidth=1)
        .encode(x=x, y=y)
    )
    return (line + dots).properties(width=WIDTH, height=HEIGHT, title=_title(title))


def _title(text: str) -> Any:
    return alt.TitleParams(text, fontSize=12, anchor="start")
