"""How the tests read a rendered HTML report."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

import tinyhtml5

XHTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"


def parse(html: str) -> Element:
    """The tree that a browser would build."""
    return tinyhtml5.parse(html)


def every(tree: Element, name: str) -> Iterator[Element]:
    """All HTML elements of a name."""
    return tree.iter(XHTML + name)


def text(element: Element) -> str:
    """The visible text of an element, with single spaces."""
    return " ".join("".join(element.itertext()).split())


def by_id(tree: Element, anchor: str) -> Element:
    """The element with an id."""
    return next(element for element in tree.iter() if element.get("id") == anchor)
