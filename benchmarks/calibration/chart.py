"""The study in one picture: verdicts by the size of the effect, and both kinds of error bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from auditspec.report.charts.svg import draw

from ..chart import themed
from .figures import Case, cases, own_errors, pool_errors
from .tables import TITLES, VERDICTS

RIGHT, WRONG, OPEN = ("#0072b2", "circle"), ("#d55e00", "triangle-up"), ("#7f7f7f", "square")
"""Colour and shape: both tell, so that a print in grey reads as well (Okabe & Ito 2008)."""
WIDTH, HEIGHT = 300, 150
SMALLEST, LARGEST = 0.02, 200.0
"""In tolerances; what lies beyond is drawn at the edge."""
LEAST, MOST = 1e-4, 100.0


def draw_calibration(result: dict[str, Any]) -> str:
    """The SVG."""
    rows = result["audits"]
    verdicts = [_verdicts(TITLES[arm], cases(rows, arm)) for arm in TITLES]
    quarter = cases(rows, "quarter")
    errors = [
        _errors("Own error of estimates (over examples)", "estimated", own_errors(quarter)),
        _errors("Intervals (mean effect on the pool)", "half-width", pool_errors(quarter)),
    ]
    grid = alt.vconcat(alt.hconcat(*verdicts, spacing=26), alt.hconcat(*errors, spacing=26))
    return draw(
        themed(grid),
        "calibration",
        "Verdicts against exact replay, and error bars against true errors",
        "Above: every behaviour by its leading exact effect towards the concern, in tolerances, and its "
        "verdict; blue circles: right; orange triangles: wrong; grey squares: nothing was claimed. "
        "Below: error bars against true errors; points above the line are covered.",
    )


def _verdicts(title: str, held: Sequence[Case]) -> Any:
    values = [
        {
            "effect": min(max(c.leading / c.tolerance, SMALLEST), LARGEST),
            "verdict": c.verdict,
            "colour": _look(c)[0],
            "shape": _look(c)[1],
            "jitter": (i * 0.618) % 1,
        }
        for i, c in enumerate(held)
    ]
    x = alt.X(
        "effect:Q",
        scale=alt.Scale(type="log", domain=[SMALLEST, LARGEST]),
        axis=alt.Axis(values=[0.1, 1, 10, 100], labelExpr="datum.value"),
        title="leading exact effect, tolerances",
    )
    dots = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=22, opacity=0.75)
        .encode(
            x=x,
            y=alt.Y("verdict:N", sort=list(VERDICTS), title=None),
            yOffset=alt.YOffset("jitter:Q", scale=alt.Scale(domain=[-0.3, 1.3])),
            color=alt.Color("colour:N", scale=None, legend=None),
            shape=alt.Shape("shape:N", scale=None, legend=None),
        )
    )
    one = (
        alt.Chart(alt.InlineData(values=[{"effect": 1}]))
        .mark_rule(strokeDash=[4, 3], stroke="#7f7f7f")
        .encode(x=x)
    )
    return (one + dots).properties(width=WIDTH, height=HEIGHT, title=_title(title))


def _look(case: Case) -> tuple[str, str]:
    """Whether a verdict is right on the evaluation examples."""
    if case.verdict == "attributed":
        return RIGHT if case.right(case.exact) else WRONG
    if case.verdict == "shared":
        return RIGHT if all(case.exact[s] > case.tolerance for s in case.named) else WRONG
    if case.verdict == "no-effect":
        return WRONG if case.guilty else RIGHT
    return OPEN


def _errors(title: str, bar: str, pairs: Sequence[tuple[float, float]]) -> Any:
    values = [{"bar": min(max(b, LEAST), MOST), "true": min(max(t, LEAST), MOST)} for b, t in pairs]
    scale = alt.Scale(type="log", domain=[LEAST, MOST])
    axis = alt.Axis(values=[1e-4, 1e-2, 1, 100], labelExpr="datum.value")
    x = alt.X("true:Q", scale=scale, axis=axis, title="true error, metric's unit")
    y = alt.Y("bar:Q", scale=scale, axis=axis, title=bar)
    dots = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=12, opacity=0.5, color=RIGHT[0])
        .encode(x=x, y=y)
    )
    ends = [{"true": LEAST, "bar": LEAST}, {"true": MOST, "bar": MOST}]
    line = (
        alt.Chart(alt.InlineData(values=ends))
        .mark_line(stroke="#7f7f7f", strokeDash=[4, 3], strokeWidth=1)
        .encode(x=x, y=y)
    )
    return (line + dots).properties(width=WIDTH, height=HEIGHT, title=_title(title))


def _title(text: str) -> Any:
    return alt.TitleParams(text, fontSize=12, anchor="start")
