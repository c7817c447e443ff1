"""When a behaviour was made: first-order contributions of the steps, along the stages.

The terms are derivatives at the recorded run. Where a stage is far from linear they do not add up to its
effect, and say little of it: what is drawn of a stage depends on how far its sum misses the effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from auditspec.report.charts.kit import MAX_STAGES, STRIP, bands, heads, upwards
from auditspec.report.charts.scales import Linear
from auditspec.report.charts.svg import Pen, Picture, Point
from auditspec.report.numbers import declared, unit_of
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Contribution, Effect

WIDTH, HEIGHT = 560, 104
"""Of the strip, in CSS pixels."""
MAX_BARS = 240
"""Most bars of all stages together; a stage gets an equal part."""
AGREES = 0.25
"""Most by which the terms' sum may miss the effect, in shares of the effect, where that is more than the tolerance."""
HATCH = 12
"""Between two lines of the hatching, in CSS pixels."""

Fit = Literal["agrees", "misses", "contradicts"]


@dataclass(frozen=True)
class StageTerms:
    """The terms of one stage beside the effect that they should add up to."""

    column: int
    """Place among the stages."""
    contribution: Contribution
    place: str
    """JSON pointer to the contribution."""
    effect: Effect | None
    effect_place: str
    fit: Fit
    """`agrees`: the sum misses the effect by at most a quarter of it, or by the tolerance; `misses`: by less
    than the whole of it, so that at least its sign is right; `contradicts`: by more, or there is no effect."""


def stage_terms(result: AuditResult, behavior: BehaviorResult) -> tuple[StageTerms, ...]:
    """The terms of every stage that has some, in the order of training."""
    effects = {
        e.arm: (e, f"/effects/{i}")
        for i, e in enumerate(result.effects)
        if e.behavior == behavior.id
    }
    columns = {stage.id: column for column, stage in enumerate(result.stages)}
    terms = []
    for index, contribution in enumerate(result.contributions):
        if contribution.behavior == behavior.id and contribution.stage in columns:
            effect, place = effects.get((f"omit {contribution.stage}",), (None, ""))
            fit = _fit(contribution.total, effect, behavior.concern.tolerance)
            column = columns[contribution.stage]
            terms.append(
                StageTerms(column, contribution, f"/contributions/{index}", effect, place, fit)
            )
    return tuple(sorted(terms, key=lambda term: term.column))


def _fit(total: float, effect: Effect | None, tolerance: float) -> Fit:
    if effect is None:
        return "contradicts"
    off = abs(total - effect.value)
    if off <= max(AGREES * abs(effect.value), tolerance):
        return "agrees"
    return "misses" if off < abs(effect.value) else "contradicts"


def contribution_chart(result: AuditResult, behavior: BehaviorResult, key: str) -> str:
    """Bars of summed terms, every stage equally wide; hatched where they miss the effect, none where they
    contradict it.
    """
    stages = result.stages[:MAX_STAGES]
    terms = [term for term in stage_terms(result, behavior) if term.column < len(stages)]
    unit = unit_of(behavior.unit)
    bars = [
        bar
        | {
            "value": bar["value"] * unit.scale,
            "tone": "concern" if behavior.concern.signed(bar["value"]) > 0 else "improve",
        }
        for term in terms
        if term.fit != "contradicts"
        for bar in _bars(term, stages[term.column].steps or 0, MAX_BARS // len(stages))
    ]
    if not bars:
        return ""
    low, high = _domain([bar["value"] for bar in bars])
    slot = WIDTH / len(stages)
    edges = [slot * k for k in range(len(stages) + 1)]
    y = Linear(low, high, HEIGHT, 0)
    picture = Picture(WIDTH, HEIGHT, STRIP)
    bands(picture, edges, 0, HEIGHT)
    upwards(picture, y, 4, unit.change)
    hatched = [term.column for term in terms if term.fit != "agrees"]
    picture.lines(_hatching(hatched, slot), Pen("muted", 0.6, opacity=0.6))
    for bar in bars:
        corners = (slot * bar["x"], y(0), slot * bar["x2"], y(bar["value"]))
        picture.box(corners, bar["tone"])
    picture.lines([((0, y(0)), (WIDTH, y(0)))], Pen("mark"))
    heads(picture, edges, [clean(stage.id, SHORT) for stage in stages])
    told = "; ".join(
        f"{clean(term.contribution.stage, SHORT)} {declared(term.contribution.total * unit.scale)}"
        + {"agrees": "", "misses": ", hatched", "contradicts": ", not drawn"}[term.fit]
        for term in terms
    )
    return picture.drawn(
        key,
        f"First-order contributions of the training steps to {clean(behavior.id, SHORT)}, in {unit.change}",
        f"Sums over the stages: {told}.",
    )


def _bars(term: StageTerms, steps: int, most: int) -> Iterator[dict[str, Any]]:
    """At most `most` bars in the stage's column; bins are summed, none is left out."""
    step, value = term.contribution.step, term.contribution.value
    if not step:
        return
    steps = max(steps, step[-1] + 1)
    edges = (*step, steps)
    every = -(-len(step) // most)
    for first in range(0, len(step), every):
        last = min(first + every, len(step))
        yield {
            "x": term.column + edges[first] / steps,
            "x2": term.column + edges[last] / steps,
            "value": sum(value[first:last]),
        }


def _domain(values: Sequence[float]) -> tuple[float, float]:
    """From below the smallest value to above the largest, with zero between."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _hatching(columns: Sequence[int], slot: float) -> Iterator[tuple[Point, Point]]:
    """Lines at 45 degrees over columns of this width, from foot to top."""
    for column in columns:
        for foot in range(HATCH - HEIGHT, int(slot), HATCH):  # where a line meets the strip's foot
            across = (max(foot, 0), min(foot + HEIGHT, slot))
            low, high = ((column * slot + x, HEIGHT - (x - foot)) for x in across)
            yield low, high
