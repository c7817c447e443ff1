"""Learning rate and training loss along the stages; every stage is equally wide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from auditspec.report.charts.kit import MAX_STAGES, STRIP, Row, bands, heads, upwards
from auditspec.report.charts.scales import Linear, Logarithmic, Scale
from auditspec.report.charts.svg import Pen, Picture, Point, Style
from auditspec.report.numbers import declared
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, StageResult

MAX_POINTS = 120
"""Most points that a stage's curve is drawn with."""
WIDTH, RATE, LOSS, BETWEEN, FEET = 560, 84, 104, 15, 20
"""Width, heights of the two panels, what lies between them, and room for the numbers of steps; in CSS pixels."""


def timeline_chart(result: AuditResult, key: str) -> str:
    """Learning rate and training loss along the stages; every stage is equally wide."""
    stages = result.stages[:MAX_STAGES]
    points = [point for i, stage in enumerate(stages) for point in _points(i, stage)]
    if not points:
        return ""
    picture = Picture(WIDTH, RATE + BETWEEN + LOSS + FEET, STRIP)
    edges = [k * WIDTH / len(stages) for k in range(len(stages) + 1)]
    rates = _curves(points, "rate")
    scale = _wide(rates)
    if isinstance(scale, Logarithmic):
        rates = [[(x, max(rate, scale.low)) for x, rate in curve] for curve in rates]
        _draw_panel(picture, edges, rates, scale, "learning rate (log)")
    else:
        _draw_panel(picture, edges, rates, scale, "learning rate")
    losses, foot = _curves(points, "loss"), RATE + BETWEEN + LOSS
    _draw_panel(picture, edges, losses, _from_zero(losses, foot, foot - LOSS), "training loss")
    heads(picture, edges, [clean(stage.id, SHORT) for stage in stages])
    for left, right, stage in zip(edges, edges[1:], stages, strict=False):
        steps = "steps not recorded" if stage.steps is None else f"{stage.steps:,} steps"
        at = ((left + right) / 2, picture.height - FEET + 13)
        picture.text(at, steps, Style("muted", 10, limit=right - left - 6))
    told = "; ".join(
        f"{clean(s.id, SHORT)}: largest learning rate {declared(max(s.curve.learning_rate))}"
        for s in stages
        if s.curve is not None and s.curve.learning_rate
    )
    return picture.drawn(
        key, "Learning rate and training loss along the training stages", f"{told}."
    )


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


def _curves(points: Sequence[Row], field: str) -> list[list[Point]]:
    """Pixel and value of every point that has one, stage by stage."""
    known = [point for point in points if point[field] is not None]
    return [
        [(point["x"], point[field]) for point in stage]
        for _, stage in groupby(known, key=lambda point: point["stage"])
    ]


def _wide(rates: Sequence[Sequence[Point]]) -> Scale:
    """A logarithmic scale where the stages' largest rates lie far apart; it ends a hundredth below the least of them."""
    peaks = [max(rate for _, rate in curve) for curve in rates]
    if min(peaks) > 0 and max(peaks) / min(peaks) >= 10:
        least = max(min(peaks) / 100, min(rate for curve in rates for _, rate in curve))
        low, high = math.floor(math.log10(least)), math.ceil(math.log10(max(peaks)))
        return Logarithmic(10.0**low, 10.0**high, RATE, 0)
    return _from_zero(rates, RATE, 0)


def _from_zero(curves: Sequence[Sequence[Point]], foot: float, top: float) -> Scale:
    """From zero to above the largest value, and where there are negative ones from below the smallest."""
    values = [value for curve in curves for _, value in curve]
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    margin = 0.05 * (high - low) or 1.0
    return Linear(low - margin * (low < 0), high + margin, foot, top)


def _draw_panel(
    picture: Picture,
    edges: Sequence[float],
    curves: Sequence[Sequence[Point]],
    scale: Scale,
    title: str,
) -> None:
    bands(picture, edges, scale.end, scale.start)
    if curves:
        upwards(picture, scale, 4, title)
    slot = edges[1]
    drawn = [[(x * slot, scale(value)) for x, value in curve] for curve in curves]
    picture.lines(drawn, Pen("accent", 1.5))
