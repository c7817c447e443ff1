"""A picture as one inline `<svg>`: inert, accessible, small, recolourable.

It is built of few elements with few attributes, so that nothing in it can run, load, or clash with another picture of
the page. Colours are named as in the style sheet, and become both a colour and a class by which the style sheet recolours them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from xml.etree import ElementTree as ET

from auditspec.report.charts.lettering import fitted
from auditspec.report.palette import colours

SVG = "http://www.w3.org/2000/svg"
FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
ELEMENTS = frozenset({"svg", "g", "path", "text"})
ATTRIBUTES = frozenset(
    {
        *("id", "d", "x", "y", "viewBox", "transform", "fill", "stroke", "stroke-opacity"),
        *("stroke-width", "stroke-dasharray", "text-anchor", "font-size", "font-weight"),
    }
)
Anchor = Literal["start", "middle", "end"]
Shape = Literal["circle", "left", "right"]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Two corners of a rectangle: x, y, x2, y2."""
_DROP = 0.3
"""From a text's middle down to its baseline, in shares of the size."""


class Margins(NamedTuple):
    """Around the plot, in CSS pixels."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Pen:
    """How a line is drawn: its colour by name, its width, dashes, and how opaque it is."""

    colour: str
    width: float = 1.0
    dash: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Style:
    """How a text is written: its colour by name, size, weight, side at its place, and most width."""

    colour: str = "ink"
    size: float = 11.0
    bold: bool = False
    anchor: Anchor = "middle"
    limit: float = float("inf")


class Picture:
    """Marks on a plot of a size in CSS pixels, with margins around it; what comes later lies above."""

    def __init__(self, width: float, height: float, margins: Margins) -> None:
        self.width, self.height = width, height
        self._ink = colours()
        whole = (margins.left + width + margins.right, margins.top + height + margins.bottom)
        self._root = ET.Element("svg", {"viewBox": " ".join(map(_n, (0, 0, *whole)))})
        place = f"translate({_n(margins.left)},{_n(margins.top)})"
        self._plot = ET.SubElement(self._root, "g", {"fill": "none", "transform": place})

    def box(self, box: Box, fill: str) -> None:
        """A filled rectangle."""
        self._paint(ET.SubElement(self._plot, "path", {"d": _outline(box)}), fill, None)

    def frame(self, box: Box, pen: Pen) -> None:
        """The edge of a rectangle."""
        self._stroke(ET.SubElement(self._plot, "path", {"d": _outline(box)}), pen)

    def lines(self, drawn: Iterable[Sequence[Point]], pen: Pen) -> None:
        """Lines through points each, as one path; of none, nothing."""
        parts = [
            "M" + "L".join(f"{_n(x)},{_n(y)}" for x, y in points) for points in drawn if points
        ]
        if parts:
            self._stroke(ET.SubElement(self._plot, "path", {"d": "".join(parts)}), pen)

    def strokes(self, drawn: Iterable[Sequence[Point]], pen: Pen) -> None:
        """Lines that show where several lie upon another, because each is a path."""
        group = ET.Element("g")
        self._stroke(group, pen)
        for points in drawn:
            path = "M" + "L".join(f"{_n(x)},{_n(y)}" for x, y in points)
            ET.SubElement(group, "path", {"d": path})
        if len(group):
            self._plot.append(group)

    def mark(
        self, at: Point, area: float, fill: str, pen: Pen | None = None, shape: Shape = "circle"
    ) -> None:
        """A small shape around a point: a disc within a square of `area`, or a triangle that points left or right."""
        r = area**0.5 / 2
        h = 3**0.5 / 2 * r * (-1 if shape == "left" else 1)
        disc = f"M{_n(r)},0A{_n(r)},{_n(r)},0,1,1,{_n(-r)},0A{_n(r)},{_n(r)},0,1,1,{_n(r)},0"
        outline = disc if shape == "circle" else f"M{_n(h)},0L{_n(-h)},{_n(-r)}V{_n(r)}Z"
        element = ET.SubElement(self._plot, "path")
        element.set("transform", f"translate({_n(at[0])},{_n(at[1])})")
        element.set("d", outline)
        self._paint(element, fill, pen)

    def text(self, at: Point, text: str, style: Style, *, turned: bool = False) -> None:
        """A line of text whose middle in height is at a point; turned, it is read from below."""
        size, (x, y) = style.size, at
        attributes = {"x": _n(x), "y": _n(y + _DROP * size)}
        if turned:
            attributes = {"transform": f"translate({_n(x + _DROP * size)},{_n(y)}) rotate(-90)"}
        if style.anchor != "start":
            attributes["text-anchor"] = style.anchor
        attributes["font-size"] = f"{_n(size)}px"
        if style.bold:
            attributes["font-weight"] = "bold"
        element = ET.SubElement(self._plot, "text", attributes)
        element.text = fitted(text, style.limit, size, bold=style.bold)
        self._paint(element, style.colour, None)

    def drawn(self, key: str, title: str, description: str) -> str:
        """The `<svg>` element, for a page.

        Args:
            key: prefix of every id, unique on the page.
            title: the accessible name, which is also the alternative text in the PDF.
            description: what the picture shows, in words.
        """
        root = ET.Element("svg", dict(self._root.attrib))
        root.attrib |= {
            "role": "img",
            "aria-labelledby": f"{key}-title {key}-desc",
            "font-family": FONT,
            "class": "chart",
            "xmlns": SVG,
        }
        for tag, text in (("title", title), ("desc", description)):
            ET.SubElement(root, tag, {"id": f"{key}-{tag}"}).text = text
        root.append(self._plot)
        return ET.tostring(root, encoding="unicode")

    def _paint(self, element: ET.Element, fill: str, pen: Pen | None) -> None:
        element.set("fill", self._ink[fill])
        if pen is not None:
            self._stroke(element, pen)
        element.set("class", " ".join([f"f-{fill}", *element.get("class", "").split()]))

    def _stroke(self, element: ET.Element, pen: Pen) -> None:
        element.set("stroke", self._ink[pen.colour])
        if pen.width != 1:
            element.set("stroke-width", _n(pen.width))
        if pen.dash:
            element.set("stroke-dasharray", pen.dash)
        if pen.opacity != 1:
            element.set("stroke-opacity", _n(pen.opacity))
        element.set("class", f"s-{pen.colour}")


def _outline(box: Box) -> str:
    x, y, x2, y2 = box
    return f"M{_n(x)},{_n(y)}h{_n(x2 - x)}v{_n(y2 - y)}h{_n(x - x2)}Z"


def _n(number: float) -> str:
    """A number of pixels, to a hundredth."""
    return f"{round(number, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
