"""What the charts share: inline data, literal colours, one theme, fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from auditspec.report.charts.svg import FONT
from auditspec.report.palette import colours
from auditspec.report.parts import Number, Phrase
from auditspec.results import Concern

MAX_STAGES, MAX_BEHAVIORS = 24, 16
"""Most columns and rows of a picture; the tables hold the rest."""
MAX_DOTS = 240
"""Most effects and levels that the charts of all behaviours draw together."""

Row = Mapping[str, Any]


def data(rows: Sequence[Row]) -> Any:
    """A chart over rows that the specification itself holds: nothing is loaded."""
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def stroke(field: str) -> Any:
    """The stroke colour that a field names."""
    return alt.Stroke(f"{field}:N", scale=None, legend=None)


def fill(field: str) -> Any:
    """The fill colour that a field names."""
    return alt.Fill(f"{field}:N", scale=None, legend=None)


def pixels(x: str, y: str) -> dict[str, Any]:
    """Positions in CSS pixels that two fields hold."""
    return {
        "x": alt.X(f"{x}:Q", scale=None, axis=None),
        "y": alt.Y(f"{y}:Q", scale=None, axis=None),
    }


def x_at(pixel: float) -> Any:
    """The same place for every row."""
    return alt.XValue(pixel)  # type: ignore[no-untyped-call]


def y_at(pixel: float) -> Any:
    """The same place for every row."""
    return alt.YValue(pixel)  # type: ignore[no-untyped-call]


def words(rows: Sequence[Row], colour: str, size: float = 11, **style: Any) -> Any:
    """The field `text` of each row, at its pixels `x` and `y`."""
    mark = data(rows).mark_text(fontSize=size, fill=colour, **style)
    return mark.encode(**pixels("x", "y"), text=alt.Text("text:N"))


def towards(concern: Concern, width: float) -> Any:
    """An arrow above a plot of this width, on the side to which the concern lies."""
    rises = concern.rises
    return (
        data([{}])
        .mark_text(
            text="towards the concern →" if rises else "← towards the concern",
            align="right" if rises else "left",
            color=colours()["concern"],
            fontSize=10.5,
        )
        .encode(x=x_at(width if rises else 0), y=y_at(-9))
    )


def layer(
    layers: Sequence[Any], width: float, height: float, padding: Mapping[str, float]
) -> dict[str, Any]:
    """Charts on top of one another, on a canvas of exactly this size and padding."""
    # In one call: altair copies a layered chart, with its data, for every property that is set afterwards.
    size = {"width": width, "height": height, "padding": dict(padding), "autosize": "none"}
    return themed(alt.layer(*layers, **size))


def themed(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, with the report's fonts and colours."""
    ink = colours()
    specification: dict[str, Any] = chart.to_dict(validate=False)
    specification["config"] = {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": ink["muted"],
            "titleColor": ink["muted"],
            "gridColor": ink["rule"],
            "tickColor": ink["rule"],
            "domain": False,
            "ticks": False,
            "labelFontSize": 10,
            "titleFontSize": 10.5,
            "titleFontWeight": "normal",
        },
    }
    return specification


def flat(phrase: Phrase) -> str:
    """A phrase of text and numbers as one string."""
    return "".join(part.text if isinstance(part, Number) else str(part) for part in phrase)
