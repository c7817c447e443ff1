"""Learning rate and training loss along the stages; every stage is equally wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import altair as alt

from auditspec.report.charts.kit import (
    MAX_STAGES,
    Row,
    data,
    themed,
    y_at,
)
from auditspec.report.charts.svg import draw
from auditspec.report.numbers import declared
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, StageResult

MAX_POINTS = 120
"""Most points that a stage's curve is drawn with."""
WIDTH, RATE, LOSS = 560, 84, 104
"""Width and heights of the two panels, in CSS pixels."""


def timeline_chart(result: AuditResult, key: str) -> str:
    """Learning rate and training loss along the stages; every stage is equally wide."""
    stages = result.stages[:MAX_STAGES]
    points = [point for i, stage in enumerate(stages) for point in _points(i, stage)]
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
        _panel(
            len(stages),
            points,
            "rate",
            "learning rate" + (" (log)" if wide else ""),
            RATE,
            log=wide,
        ),
        _panel(
            len(stages), [p for p in points if p["loss"] is not None], "loss", "training loss", LOSS
        ),
    ]
    slot = WIDTH / len(stages)
    heads = [{"x": i + 0.5, "text": clean(stage.id, SHORT)} for i, stage in enumerate(stages)]
    feet = [
        {"x": i + 0.5, "text": "steps not recorded" if s.steps is None else f"{s.steps:,} steps"}
        for i, s in enumerate(stages)
    ]
    x = alt.X("x:Q")
    panels[0] += (
        data(heads)
        .mark_text(fontSize=11, fontWeight="bold", fill=ink["ink"], limit=slot - 6)
        .encode(x=x, y=y_at(-10), text=alt.Text("text:N"))
    )
    panels[1] += (
        data(feet)
        .mark_text(fontSize=10, fill=ink["muted"], limit=slot - 6)
        .encode(x=x, y=y_at(LOSS + 13), text=alt.Text("text:N"))
    )
    chart = themed(alt.vconcat(*panels, spacing=14))
    told = "; ".join(
        f"{clean(s.id, SHORT)}: largest learning rate {declared(max(s.curve.learning_rate))}"
        for s in stages
        if s.curve is not None and s.curve.learning_rate
    )
    return draw(chart, key, "Learning rate and training loss along the training stages", f"{told}.")


def _points(index: int, stage: StageResult) -> Iterator[dict[str, Any]]:
    """The stage's curve, thinned to `MAX_POINTS`, between x = index and x = index + 1."""
    curve = stage.curve
    if curve is None or not curve.step:
        return
    steps = max(1, stage.steps or 0, curve.step[-1] + 1)
    every = -(-len(curve.step) // MAX_POINTS)
    rows = zip(curve.step, curve.learning_rate, curve.loss, strict=False)
    for step, rate, loss in islice(rows, 0, None, every):
        yield {"stage": index, "x": index + (step + 0.5) / steps, "rate": rate, "loss": loss}


def _panel(
    stages: int,
    points: Sequence[Row],
    field: str,
    title: str,
    height: int,
    *,
    log: bool = False,
) -> Any:
    ink = colours()
    bands = [{"x": i, "x2": i + 1} for i in range(stages)]
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, len(bands)], nice=False), axis=None)
    y = alt.Y(
        f"{field}:Q",
        scale=alt.Scale(type="log") if log else alt.Scale(zero=True),
        axis=alt.Axis(title=title, tickCount=4, minExtent=44, format="~g", titlePadding=6),
    )
    layers = [
        data(bands[::2]).mark_rect(color=ink["band"]).encode(x=x, x2=alt.X2("x2:Q")),
        data(points)
        .mark_line(strokeWidth=1.5, color=ink["accent"], clip=True)
        .encode(x=x, y=y, detail="stage:N"),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=height)
