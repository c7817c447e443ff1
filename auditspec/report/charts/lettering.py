"""How wide a text is in the report's font, so that a label is cut where its place ends."""

from __future__ import annotations

import struct
from functools import cache
from itertools import accumulate

from auditspec.resources import folder

FACES = ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf")
WIDEST = 1.0
"""Width of a character that the font lacks, in shares of the size."""
ELLIPSIS = "…"
_SEGMENTS = 4  # the format of a table of characters that holds the first 65,536 of Unicode


def fitted(text: str, limit: float, size: float, *, bold: bool = False) -> str:
    """The text, or where it is wider than the limit as much of it as fits, and an ellipsis.

    Args:
        text: one line.
        limit: in CSS pixels.
        size: of the font, in CSS pixels.
        bold: in which weight.

    Raises:
        FileNotFoundError: if the installation lacks its templates.
    """
    face = advances(FACES[bold])
    ends = [size * end for end in accumulate(face.get(ord(c), WIDEST) for c in text)]
    if not ends or ends[-1] <= limit:
        return text
    room = limit - size * face.get(ord(ELLIPSIS), WIDEST)
    return text[: sum(end <= room for end in ends)].rstrip() + ELLIPSIS


@cache
def advances(face: str) -> dict[int, float]:
    """Width of every character of a font, in shares of its size (OpenType: head, hhea, hmtx, cmap)."""
    data = (folder("templates") / "fonts" / face).read_bytes()
    tables = {}
    for k in range(_u16(data, 4)):
        tag, _, offset, _ = struct.unpack_from(">4sIII", data, 12 + 16 * k)
        tables[tag] = offset
    unit, count = _u16(data, tables[b"head"] + 18), _u16(data, tables[b"hhea"] + 34)
    widths = struct.unpack_from(f">{2 * count}H", data, tables[b"hmtx"])[
        ::2
    ]  # beside each a bearing
    glyphs = _glyphs(data, tables[b"cmap"])
    return {code: widths[min(glyph, count - 1)] / unit for code, glyph in glyphs.items()}


def _glyphs(data: bytes, cmap: int) -> dict[int, int]:
    """Glyph of every character, by the table in segments."""
    subtables = [
        cmap + struct.unpack_from(">I", data, cmap + 8 + 8 * k)[0]
        for k in range(_u16(data, cmap + 2))
    ]
    table = next(place for place in subtables if _u16(data, place) == _SEGMENTS)
    n = _u16(data, table + 6) // 2
    ends = struct.unpack_from(f">{n}H", data, table + 14)
    rest = table + 16 + 2 * n
    starts = struct.unpack_from(f">{n}H", data, rest)
    deltas = struct.unpack_from(f">{n}H", data, rest + 2 * n)
    glyphs = {}
    for k, (start, end, delta) in enumerate(zip(starts, ends, deltas, strict=True)):
        place = rest + 4 * n + 2 * k
        offset = _u16(data, place)
        for code in range(start, min(end, 0xFFFE) + 1):
            glyph = _u16(data, place + offset + 2 * (code - start)) if offset else code
            if glyph:
                glyphs[code] = (glyph + delta) % 2**16
    return glyphs


def _u16(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 2], "big")
