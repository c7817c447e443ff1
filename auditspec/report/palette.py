"""The style sheet and its colours: the one place where a colour is decided.

Charts are drawn in the light colours and marked with classes (`f-NAME` for a fill, `s-NAME` for a
stroke), so that the style sheet can recolour them in the dark.
"""

from __future__ import annotations

import re
from functools import cache

from auditspec.resources import folder

LIGHT, DARK = "light", "dark"
_BLOCK = {
    LIGHT: re.compile(r"^:root\s*\{([^}]*)\}", re.MULTILINE),
    DARK: re.compile(r"prefers-color-scheme:\s*dark\)\s*\{\s*:root\s*\{([^}]*)\}"),
}
_COLOUR = re.compile(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6});")


@cache
def stylesheet() -> str:
    """The whole style sheet: screen first, then print."""
    place = folder("templates") / "report"
    return "\n".join((place / name).read_text("utf-8") for name in ("screen.css", "print.css"))


@cache
def colours(scheme: str = LIGHT) -> dict[str, str]:
    """The custom properties of a scheme that are colours: name -> `#rrggbb`.

    Raises:
        ValueError: if the style sheet has no such scheme.
    """
    block = _BLOCK[scheme].search(stylesheet()) if scheme in _BLOCK else None
    if block is None:
        raise ValueError(f"the style sheet has no scheme {scheme!r}")
    return dict(_COLOUR.findall(block.group(1)))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours `#rrggbb`, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
