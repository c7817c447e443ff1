"""Deviation of every re-run window of the record, on a logarithmic scale, beside the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import altair as alt

from auditspec.report.charts.kit import (
    data,
    fill,
    themed,
    y_at,
)
from auditspec.report.charts.svg import draw
from auditspec.report.numbers import significant
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import CheckDetail, CheckResult

WIDTH, HEIGHT = 560, 110
"""In CSS pixels."""
MAX_POINTS = 240
"""Most windows that are drawn; of more, the worst of neighbours is."""
FLOOR = 1e-12
"""Where windows that re-run bitwise are drawn."""


def window_chart(check: CheckResult, key: str) -> str:
    """A dot for every window; filled in the concern's colour where it failed."""
    windows = [d for d in check.details if d.stage is not None and d.statistic is not None]
    if len(windows) < 2 or not check.threshold:
        return ""
    ink, shown = colours(), list(_thinned(windows))
    dots = [
        {
            "x": i + 0.5,
            "y": max(d.statistic or 0.0, FLOOR),
            "tone": ink["concern" if d.outcome == "fail" else "accent"],
        }
        for i, d in enumerate(shown)
    ]
    bands = list(_bands(shown))
    top = max(check.threshold, max(d.statistic or 0.0 for d in shown))
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, len(shown)], nice=False), axis=None)
    y = alt.Y(
        "y:Q",
        scale=alt.Scale(type="log", domain=[FLOOR / 3, 3 * top], nice=False),
        axis=alt.Axis(
            title="relative deviation", tickCount=5, minExtent=44, format=".0e", titlePadding=6
        ),
    )
    layers = [
        data(bands[::2]).mark_rect(color=ink["band"]).encode(x=x, x2=alt.X2("x2:Q")),
        data([{"y": check.threshold}])
        .mark_rule(color=ink["concern"], strokeWidth=1, strokeDash=[4, 3])
        .encode(y=y),
        data(dots)
        .mark_point(size=22, opacity=1, strokeWidth=0)
        .encode(x=x, y=y, fill=fill("tone")),
        data(bands)
        .mark_text(fontSize=11, fontWeight="bold", fill=ink["ink"], limit=WIDTH / len(bands) - 6)
        .encode(x=alt.X("middle:Q"), y=y_at(-10), text=alt.Text("text:N")),
    ]
    chart: Any = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    failed = sum(d.outcome == "fail" for d in windows)
    bitwise = sum(d.statistic == 0 for d in windows)
    lost = sum(d.stage is not None and d.statistic is None for d in check.details)
    missing = f", {lost} more could not be compared and are not drawn" if lost else ""
    worst = max(windows, key=lambda d: d.statistic or 0.0)
    return draw(
        themed(chart),
        key,
        "Relative deviation of every re-run window of the record, in order of training",
        f"{len(windows)} windows, {bitwise} of them re-run bitwise, {failed} failed{missing}; the largest deviation "
        f"is {significant(worst.statistic or 0.0)}, in {clean(worst.subject, SHORT)}.",
    )


def _thinned(windows: Sequence[CheckDetail]) -> Iterator[CheckDetail]:
    """Of neighbours in one stage, the one that failed, or deviates most."""
    every = -(-len(windows) // MAX_POINTS)
    for _, stage in groupby(windows, key=lambda d: d.stage):
        windows_of_stage = list(stage)
        for start in range(0, len(windows_of_stage), every):
            yield max(
                windows_of_stage[start : start + every],
                key=lambda d: (d.outcome == "fail", d.statistic or 0.0),
            )


def _bands(windows: Sequence[CheckDetail]) -> Iterator[dict[str, Any]]:
    """From where to where each stage's windows are drawn, and its name."""
    start = 0
    for stage, windows_of_stage in groupby(windows, key=lambda d: d.stage):
        stop = start + len(list(windows_of_stage))
        yield {
            "x": start,
            "x2": stop,
            "middle": (start + stop) / 2,
            "text": clean(stage or "", SHORT),
        }
        start = stop
