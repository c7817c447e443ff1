"""When a behaviour was made: first-order contributions of the steps, along the stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt

from auditspec.report.charts.kit import MAX_STAGES, data, fill, themed
from auditspec.report.charts.svg import draw
from auditspec.report.numbers import declared, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Contribution

WIDTH, HEIGHT = 560, 104
"""Of the strip, in CSS pixels."""
MAX_BARS = 240
"""Most bars of all stages together; a stage gets an equal part."""


def contribution_chart(result: AuditResult, behavior: BehaviorResult, key: str) -> str:
    """Bars of summed contributions, every stage equally wide; towards the concern in its colour."""
    held = {c.stage: c for c in result.contributions if c.behavior == behavior.id}
    stages = result.stages[:MAX_STAGES]
    ink, unit = colours(), unit_of(behavior.unit)
    bars = [
        bar
        | {
            "value": bar["value"] * unit.scale,
            "tone": ink[_tone(behavior.concern.signed(bar["value"]))],
        }
        for i, stage in enumerate(stages)
        if stage.id in held
        for bar in _bars(i, held[stage.id], stage.steps or 0, MAX_BARS // len(stages))
    ]
    if not bars:
        return ""
    bands = [{"x": i, "x2": i + 1} for i in range(len(stages))]
    heads = [{"x": i + 0.5, "text": clean(stage.id, SHORT)} for i, stage in enumerate(stages)]
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, len(stages)], nice=False), axis=None)
    y = alt.Y(
        "value:Q",
        axis=alt.Axis(title=unit.change, tickCount=4, minExtent=44, format="~g", titlePadding=6),
    )
    chart: Any = alt.layer(
        data(bands[::2]).mark_rect(color=ink["band"]).encode(x=x, x2="x2:Q"),
        data(bars).mark_bar().encode(x=x, x2="x2:Q", y=y, fill=fill("tone")),
        data([{"value": 0}]).mark_rule(color=ink["mark"], strokeWidth=1).encode(y=y),
        data(heads)
        .mark_text(fontSize=11, fontWeight="bold", fill=ink["ink"], limit=WIDTH / len(stages) - 6)
        .encode(x=x, y=alt.value(-10), text="text:N"),
    ).properties(width=WIDTH, height=HEIGHT)
    name = clean(behavior.id, SHORT)
    told = "; ".join(
        f"{clean(stage.id, SHORT)} {declared(held[stage.id].total * unit.scale)}"
        for stage in stages
        if stage.id in held
    )
    return draw(
        themed(chart),
        key,
        f"First-order contributions of the training steps to {name}, in {unit.change}",
        f"Sums over the stages: {told}.",
    )


def _bars(index: int, held: Contribution, steps: int, most: int) -> Iterator[dict[str, Any]]:
    """At most `most` bars between x = index and x = index + 1; bins are summed, none is left out."""
    if not held.step:
        return
    steps = max(steps, held.step[-1] + 1)
    edges = (*held.step, steps)
    every = -(-len(held.step) // most)
    for first in range(0, len(held.step), every):
        last = min(first + every, len(held.step))
        yield {
            "x": index + edges[first] / steps,
            "x2": index + edges[last] / steps,
            "value": sum(held.value[first:last]),
        }


def _tone(towards: float) -> str:
    return "concern" if towards > 0 else "improve"
