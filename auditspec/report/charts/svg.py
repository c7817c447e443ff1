"""From a chart to an SVG that a page can carry: inert, accessible, small, recolourable.

vl-convert's SVG is rebuilt from an allowlist of elements and attributes, so nothing in a chart can
run, load, or clash with another chart of the page.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import vl_convert

from auditspec.report.palette import colours

SVG = "http://www.w3.org/2000/svg"
FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
ELEMENTS = frozenset(
    ["svg", "g", "path", "rect", "line", "circle", "text", "tspan", "defs", "clipPath"]
)
ATTRIBUTES = frozenset(
    [
        "d",
        "x",
        "y",
        "x1",
        "y1",
        "x2",
        "y2",
        "cx",
        "cy",
        "r",
        "width",
        "height",
        "viewBox",
        "transform",
        "fill",
        "stroke",
        "opacity",
        "fill-opacity",
        "stroke-width",
        "stroke-dasharray",
        "stroke-opacity",
        "stroke-linecap",
        "stroke-linejoin",
        "clip-path",
        "id",
        "text-anchor",
        "font-size",
        "font-weight",
        "font-style",
    ]
)
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
    root = _rebuild(ET.fromstring(drawn), key, {v: k for k, v in colours().items()})  # noqa: S314
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


def _rebuild(source: ET.Element, key: str, names: dict[str, str]) -> ET.Element:
    """Copy an element and its allowed children and attributes, without namespaces."""
    element = ET.Element(source.tag.removeprefix(f"{{{SVG}}}"))
    element.text = source.text
    classes = []
    for name, value in source.attrib.items():
        if name not in ATTRIBUTES or (name == "opacity" and value == "1"):
            continue
        if name == "id":
            value = f"{key}-{value}"
        elif (local := _LOCAL.match(value)) is not None:
            value = f"url(#{key}-{local.group(1)})"
        elif name in ("d", "transform"):
            value = _LONG_DECIMAL.sub(r"\1", value)
        elif name in ("fill", "stroke") and value in names:
            classes.append(f"{name[0]}-{names[value]}")
        element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
    for child in source:
        if child.tag.removeprefix(f"{{{SVG}}}") in ELEMENTS and child.get("display") != "none":
            copy = _rebuild(child, key, names)
            if not _empty(copy):
                element.append(copy)
    return element


def _empty(element: ET.Element) -> bool:
    """True for the frames that Vega emits around nothing."""
    if element.tag == "path":
        invisible = element.get("fill") is None and element.get("stroke") is None
        return invisible or element.get("d", "") in ("", "M0,0h0v0h0Z")
    return element.tag == "g" and len(element) == 0
