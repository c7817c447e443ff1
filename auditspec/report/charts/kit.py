"""What the charts share: bounds, axes, bands of stages, labels beside the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auditspec.report.charts.scales import Scale
from auditspec.report.charts.svg import Margins, Pen, Picture, Style
from auditspec.report.parts import Number, Phrase
from auditspec.results import Concern

MAX_STAGES, MAX_BEHAVIORS = 24, 16
"""Most columns and rows of a picture; the tables hold the rest."""
MAX_DOTS = 240
"""Most effects and levels that the charts of all behaviours draw together."""
STRIP = Margins(65, 6, 22, 8)
"""Around a strip of stages: the axis stands left of it, the stages' names above."""

Row = Mapping[str, Any]

GRID = Pen("rule")
_TICK, _TITLE = 10.0, 10.5


def across(picture: Picture, scale: Scale, count: int) -> None:
    """An axis below the plot, with lines up through it."""
    ticks = scale.ticks(count)
    places = [round(scale(tick.value)) + 0.5 for tick in ticks]
    picture.lines([((x, picture.height), (x, 0)) for x in places], GRID)
    for tick in ticks:
        at = (scale(tick.value) + 0.5, picture.height + 10.5)
        picture.text(at, tick.text, Style("muted", _TICK))


def upwards(picture: Picture, scale: Scale, count: int, title: str) -> None:
    """An axis left of the plot, with lines through it, and its title."""
    ticks, ends = scale.ticks(count), (scale.start, scale.end)
    places = [round(scale(tick.value)) + 0.5 for tick in ticks]
    picture.lines([((0, y), (picture.width, y)) for y in places], GRID)
    for tick, y in zip(ticks, places, strict=True):
        picture.text((-3, y), tick.text, Style("muted", _TICK, anchor="end"))
    at = (-54.0, sum(ends) / 2)
    picture.text(at, title, Style("muted", _TITLE, limit=1.2 * abs(ends[0] - ends[1])), turned=True)


def bands(picture: Picture, edges: Sequence[float], top: float, bottom: float) -> None:
    """Every second stage's column is shaded; `edges` are in pixels."""
    for k in range(0, len(edges) - 1, 2):
        picture.box((edges[k], top, edges[k + 1], bottom), "band")


def heads(picture: Picture, edges: Sequence[float], names: Sequence[str]) -> None:
    """The stages' names above their columns."""
    for left, right, name in zip(edges, edges[1:], names, strict=False):
        limit = picture.width / len(names) - 6
        picture.text(((left + right) / 2, -10), name, Style(bold=True, limit=limit))


def upright(picture: Picture, x: float, pen: Pen) -> None:
    """A line from the plot's top to its foot."""
    picture.lines([((x, 0), (x, picture.height))], pen)


def towards(picture: Picture, concern: Concern) -> None:
    """An arrow above a plot, on the side to which the concern lies."""
    if concern.rises:
        style = Style("concern", _TITLE, anchor="end")
        picture.text((picture.width, -9), "towards the concern →", style)
    else:
        style = Style("concern", _TITLE, anchor="start")
        picture.text((0, -9), "← towards the concern", style)


def beside(picture: Picture, row: Row, name: str, margins: Margins) -> None:
    """A row's name left of the plot, and what it shows right of it.

    Args:
        picture: with a plot of rows.
        row: `y`, `text`, and whether it is `named`, which makes the name bold.
        name: what the row is.
        margins: of the picture.
    """
    bold = bool(row.get("named"))
    left = Style(bold=bold, anchor="end", limit=margins.left - 18)
    picture.text((-14, row["y"]), name, left)
    right = Style(anchor="start", limit=margins.right - 16)
    picture.text((picture.width + 14, row["y"]), row["text"], right)


def flat(phrase: Phrase) -> str:
    """A phrase of text and numbers as one string."""
    return "".join(part.text if isinstance(part, Number) else str(part) for part in phrase)
