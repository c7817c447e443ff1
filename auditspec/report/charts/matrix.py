"""Behaviours × stages: colour counts tolerances, and every cell shows its value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from auditspec.estimator.interventions import INITIAL, change_before, changed_stage
from auditspec.report.charts.kit import (
    MAX_BEHAVIORS,
    MAX_STAGES,
    data,
    fill,
    flat,
    layer,
    pixels,
    words,
)
from auditspec.report.charts.svg import draw
from auditspec.report.concern import GRADES, grade
from auditspec.report.lookup import short
from auditspec.report.numbers import signed, unit_of
from auditspec.report.palette import colours
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Verdict
from auditspec.withheld import is_withheld

LEFT, WIDTH, CELL = 168, 472, 36
"""Width of the labels, least width of all cells, and height of a cell; in CSS pixels."""
MARKS: dict[Verdict, str] = {"attributed": "●", "shared": "●", "one-or-more": "◔"}
"""How the cell of a named party is marked."""


def matrix_chart(result: AuditResult, key: str) -> str:
    """Effect of every stage on every behaviour, as a table of colours and values."""
    parties = _columns(result)
    behaviors = result.behaviors[:MAX_BEHAVIORS]
    if not result.effects or not parties or not behaviors:
        return ""
    ink, width, height = colours(), max(42, round(WIDTH / len(parties))), CELL * len(behaviors)
    cells = list(_cells(result, behaviors, parties, width))
    named = [cell for cell in cells if cell["named"]]
    heads = [
        {"x": LEFT + (j + 0.5) * width, "y": -10, "text": short(changed_stage(party) or party)}
        for j, party in enumerate(parties)
    ]
    changes = [
        head | {"y": -22, "text": "change before"}
        for head, party in zip(heads, parties, strict=True)
        if changed_stage(party)
    ]
    names = [_label(i, -6, clean(behavior.id, SHORT)) for i, behavior in enumerate(behaviors)]
    units = [_label(i, 8, unit_of(b.unit).change) for i, b in enumerate(behaviors)]
    corners = {**pixels("left", "top"), "x2": "right:Q", "y2": "bottom:Q"}
    layers = [
        data(cells).mark_rect().encode(**corners, fill=fill("fill")),
        data(named).mark_rect(filled=False, stroke=ink["ink"], strokeWidth=2).encode(**corners),
        *(
            words(
                [cell for cell in cells if (cell["tone"], cell["named"]) == (tone, bold)],
                ink[tone],
                fontWeight="bold" if bold else "normal",
            )
            for tone in ("on-light", "on-strong")
            for bold in (False, True)
        ),
        words(heads, ink["ink"], limit=width - 4),
        words(changes, ink["muted"], 9.5, limit=width - 4),
        words(names, ink["ink"], align="right", limit=LEFT - 16),
        words(units, ink["muted"], 9.5, align="right", limit=LEFT - 16),
        *_legend(LEFT + 126, height + 14),
    ]
    padding = {"left": 2, "right": 2, "top": 34 if changes else 22, "bottom": 42}
    told = "; ".join(cell["told"] for cell in cells)
    return draw(
        layer(layers, LEFT + width * len(parties), height, padding),
        key,
        "Effect of every training stage on every behaviour; "
        "the tables of all effects in the appendix hold the values",
        f"{told}.",
    )


def _columns(result: AuditResult) -> list[str]:
    """The stages, and in order of training whoever else a verdict names."""
    stages = [stage.id for stage in result.stages[:MAX_STAGES]]
    named = {party for verdict in result.verdicts for party in verdict.parties}
    columns = [INITIAL] if INITIAL in named else []
    for stage in stages:
        before = change_before(stage)
        columns += [before, stage] if before in named else [stage]
    return columns


def _cells(
    result: AuditResult, behaviors: tuple[BehaviorResult, ...], parties: list[str], width: int
) -> Iterator[dict[str, Any]]:
    """One row per cell: its corners, colour, and text."""
    ink = colours()
    by_cell = {(e.behavior, e.stage): e for e in result.effects}
    named = {(v.behavior, party): MARKS[v.verdict] for v in result.verdicts for party in v.parties}
    for i, behavior in enumerate(behaviors):
        effects = [by_cell.get((behavior.id, stage)) for stage in parties]
        values = [effect.value for effect in effects if effect and not is_withheld(effect.value)]
        largest = max(map(abs, values), default=0.0)
        step = behavior.concern.tolerance or largest / 30
        for j, (stage, effect) in enumerate(zip(parties, effects, strict=True)):
            shown = effect is not None and not is_withheld(effect.value)
            level = grade(effect, behavior, step) if effect and shown else 0
            value = flat(signed(effect, "", unit_of(behavior.unit))) if effect else "–"
            mark = named.get((behavior.id, stage), "")
            yield {
                "left": LEFT + j * width + 1,
                "right": LEFT + (j + 1) * width - 1,
                "top": i * CELL + 1,
                "bottom": (i + 1) * CELL - 1,
                "x": LEFT + (j + 0.5) * width,
                "y": (i + 0.5) * CELL,
                "fill": ink[_colour(level)],
                "tone": "on-strong" if abs(level) == len(GRADES) else "on-light",
                "text": f"{mark} {value}" if mark and effect else mark or value,
                "named": bool(mark),
                "told": f"{clean(behavior.id, SHORT)} by {short(stage)} {f'{mark} ' if mark else ''}{value}",
            }


def _legend(left: float, top: float) -> list[Any]:
    """Seven swatches between `away from the concern` and `towards the concern`."""
    ink, width = colours(), 30
    swatches = [
        {
            "left": left + k * width,
            "right": left + (k + 1) * width - 2,
            "top": top,
            "bottom": top + 9,
            "fill": ink[_colour(k - len(GRADES))],
        }
        for k in range(2 * len(GRADES) + 1)
    ]
    ticks = [
        {"x": left + (k + 1) * width - 1, "y": top + 18, "text": f"{limit:g}×"}
        for k, limit in enumerate((*reversed(GRADES), *GRADES))
    ]
    away = {"x": left - 8, "y": top + 5, "text": "away from the concern"}
    near = {"x": left + len(swatches) * width + 6, "y": top + 5, "text": "towards the concern"}
    corners = {**pixels("left", "top"), "x2": "right:Q", "y2": "bottom:Q"}
    return [
        data(swatches).mark_rect().encode(**corners, fill=fill("fill")),
        words(ticks, ink["muted"], 9.5, align="center"),
        words([away], ink["muted"], 9.5, align="right"),
        words([near], ink["muted"], 9.5, align="left"),
    ]


def _label(row: int, shift: float, text: str) -> dict[str, Any]:
    return {"x": LEFT - 14, "y": (row + 0.5) * CELL + shift, "text": text}


def _colour(level: int) -> str:
    return f"away-{-level}" if level < 0 else f"towards-{level}" if level else "neutral"
