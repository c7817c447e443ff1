"""From a chart of Vega-Lite to an SVG: inert, accessible, small.

vl-convert's SVG is rebuilt from an allowlist of elements and attributes, so that nothing in it can run or load.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import vl_convert

from auditspec.report.palette import colours

SVG = "http://www.w3.org/2000/svg"
FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
ELEMENTS = {"svg", "g", "path", "rect", "line", "circle", "text", "tspan", "defs", "clipPath"}
ATTRIBUTES = {
    *("id", "d", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height", "viewBox"),
    *("transform", "clip-path", "fill", "fill-opacity", "opacity", "stroke", "stroke-opacity"),
    *("stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin"),
    *("text-anchor", "font-size", "font-weight", "font-style"),
}
_VERSION = "6.4"
_LONG_DECIMAL = re.compile(r"(\d\.\d{2})\d+")
_LOCAL = re.compile(r"^url\(#([\w-]+)\)$")


def draw(chart: dict[str, Any], key: str, title: str, description: str) -> str:
    """Render a Vega-Lite chart to one `<svg>` element for inlining.

    Args:
        chart: the Vega-Lite specification; it must hold its data.
        key: prefix of every id, unique on the page.
        title: the accessible name, which is also the alternative text in the PDF.
        description: what the picture shows, in words.
    """
    drawn = vl_convert.vegalite_to_svg(chart, vl_version=_VERSION, allowed_base_urls=[])
    root = _Rebuild(key).copy(ET.fromstring(drawn))
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
        "font-family": FONT,
        "class": "chart",
    }
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ET.Element(tag, {"id": f"{key}-{tag}"})
        label.text = text
        root.insert(position, label)
    root.set("xmlns", SVG)
    return ET.tostring(root, encoding="unicode")


class _Rebuild:
    """Copies elements without namespaces: what is allowed, and with ids counted from one.

    Vega numbers its clip paths across charts, so its own ids depend on what was drawn before.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.ids: dict[str, str] = {}
        self.names = {colour: name for name, colour in colours().items()}

    def copy(self, source: ET.Element) -> ET.Element:
        element = ET.Element(source.tag.removeprefix(f"{{{SVG}}}"))
        element.text = source.text
        classes = []
        for name, value in source.attrib.items():
            if name not in ATTRIBUTES or (name, value) == ("opacity", "1"):
                continue
            shown = self._value(name, value)
            if shown is not None:
                element.set(name, shown)
            if name in ("fill", "stroke") and value in self.names:
                classes.append(f"{name[0]}-{self.names[value]}")
        if classes:
            element.set("class", " ".join(classes))
        for child in source:
            if child.tag.removeprefix(f"{{{SVG}}}") in ELEMENTS and child.get("display") != "none":
                copied = self.copy(child)
                if copied.tag == "g" and not copied.attrib:  # it groups, and says nothing
                    element.extend(copied)
                elif not _empty(copied):
                    element.append(copied)
        return element

    def _value(self, name: str, value: str) -> str | None:
        if name == "id":
            return self._id(value)
        if "url" in value:
            local = _LOCAL.match(value)
            return f"url(#{self._id(local.group(1))})" if local else None
        return _LONG_DECIMAL.sub(r"\1", value) if name in ("d", "transform") else value

    def _id(self, name: str) -> str:
        return self.ids.setdefault(name, f"{self.key}-{len(self.ids) + 1}")


def _empty(element: ET.Element) -> bool:
    """True for the frames that Vega emits around nothing."""
    if element.tag == "path":
        invisible = element.get("fill") is None and element.get("stroke") is None
        return invisible or element.get("d", "") in ("", "M0,0h0v0h0Z")
    return element.tag == "g" and len(element) == 0
