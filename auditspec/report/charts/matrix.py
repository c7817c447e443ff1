"""Behaviours × stages: colour counts tolerances, and every cell shows its value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from auditspec.estimator.interventions import INITIAL, change_before, changed_stage
from auditspec.report.charts.kit import MAX_BEHAVIORS, MAX_STAGES, Row, flat
from auditspec.report.charts.svg import Anchor, Margins, Pen, Picture, Style
from auditspec.report.concern import GRADES, grade
from auditspec.report.lookup import short
from auditspec.report.numbers import signed, unit_of
from auditspec.report.parts import SHORT, clean
from auditspec.results import AuditResult, BehaviorResult, Verdict
from auditspec.withheld import is_withheld

LEFT, WIDTH, CELL = 168, 472, 36
"""Width of the labels, least width of all cells, and height of a cell; in CSS pixels."""
SMALL = 9.5
"""Size of what explains, in CSS pixels."""
ANCHORS: tuple[Anchor, Anchor] = ("end", "start")
"""Of the texts left and right of the legend."""
MARKS: dict[Verdict, str] = {"attributed": "●", "shared": "●", "one-or-more": "◔"}
"""How the cell of a named party is marked."""


def matrix_chart(result: AuditResult, key: str) -> str:
    """Effect of every stage on every behaviour, as a table of colours and values."""
    parties = _columns(result)
    behaviors = result.behaviors[:MAX_BEHAVIORS]
    if not result.effects or not parties or not behaviors:
        return ""
    width, height = max(42, round(WIDTH / len(parties))), CELL * len(behaviors)
    cells = list(_cells(result, behaviors, parties, width))
    above = 34 if any(map(changed_stage, parties)) else 22
    picture = Picture(LEFT + width * len(parties), height, Margins(2, 2, above, 42))
    _draw_cells(picture, cells)
    for j, party in enumerate(parties):
        x, stage = LEFT + (j + 0.5) * width, changed_stage(party)
        picture.text((x, -10), short(stage or party), Style(limit=width - 4))
        if stage:
            picture.text((x, -22), "change before", Style("muted", SMALL, limit=width - 4))
    for i, behavior in enumerate(behaviors):
        x, y = LEFT - 14, (i + 0.5) * CELL
        name, unit = clean(behavior.id, SHORT), unit_of(behavior.unit).change
        picture.text((x, y - 6), name, Style(anchor="end", limit=LEFT - 16))
        picture.text((x, y + 8), unit, Style("muted", SMALL, anchor="end", limit=LEFT - 16))
    _draw_legend(picture, LEFT + 126, height + 14)
    told = "; ".join(cell["told"] for cell in cells)
    return picture.drawn(
        key,
        "Effect of every training stage on every behaviour; "
        "the tables of all effects in the appendix hold the values",
        f"{told}.",
    )


def _draw_cells(picture: Picture, cells: Sequence[Row]) -> None:
    """Their colours, frames around those of named parties, and what each says."""
    for cell in cells:
        picture.box(cell["corners"], cell["fill"])
    for cell in cells:
        if cell["named"]:
            picture.frame(cell["corners"], Pen("ink", 2))
        picture.text(cell["middle"], cell["text"], Style(cell["tone"], bold=cell["named"]))


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
                "corners": (
                    *(LEFT + j * width + 1, i * CELL + 1),
                    *(LEFT + (j + 1) * width - 1, (i + 1) * CELL - 1),
                ),
                "middle": (LEFT + (j + 0.5) * width, (i + 0.5) * CELL),
                "fill": _colour(level),
                "tone": "on-strong" if abs(level) == len(GRADES) else "on-light",
                "text": f"{mark} {value}" if mark and effect else mark or value,
                "named": bool(mark),
                "told": f"{clean(behavior.id, SHORT)} by {short(stage)} {f'{mark} ' if mark else ''}{value}",
            }


def _draw_legend(picture: Picture, left: float, top: float) -> None:
    """Seven swatches between `away from the concern` and `towards the concern`."""
    width, levels = 30, range(-len(GRADES), len(GRADES) + 1)
    for k, level in enumerate(levels):
        x = left + k * width
        picture.box((x, top, x + width - 2, top + 9), _colour(level))
    for k, limit in enumerate((*reversed(GRADES), *GRADES)):
        at = (left + (k + 1) * width - 1, top + 18)
        picture.text(at, f"{limit:g}×", Style("muted", SMALL))
    ends = (
        (left - 8, "away from the concern"),
        (left + len(levels) * width + 6, "towards the concern"),
    )
    for (x, text), anchor in zip(ends, ANCHORS, strict=True):
        picture.text((x, top + 5), text, Style("muted", SMALL, anchor=anchor))


def _colour(level: int) -> str:
    return f"away-{-level}" if level < 0 else f"towards-{level}" if level else "neutral"
