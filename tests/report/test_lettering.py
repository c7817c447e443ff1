"""Widths of texts are those of the font that the report is set in."""

from __future__ import annotations

import pytest
from fontTools.ttLib import TTFont

from auditspec.report.charts.lettering import FACES, WIDEST, advances, fitted
from auditspec.resources import folder


@pytest.mark.parametrize("face", FACES)
def test_every_character_is_as_wide_as_another_reader_says(face: str) -> None:
    font = TTFont(folder("templates") / "fonts" / face)
    unit, widths = font["head"].unitsPerEm, font["hmtx"].metrics
    (table,) = {id(t.cmap): t for t in font["cmap"].tables if t.format == 4}.values()
    theirs = {code: widths[glyph][0] / unit for code, glyph in table.cmap.items()}
    ours = advances(face)
    assert len(ours) > 2000
    assert ours == theirs


def test_what_does_not_fit_ends_with_an_ellipsis() -> None:
    assert fitted("pretrain", 100, 11) == "pretrain"
    assert fitted("", 0, 11) == ""
    short = fitted("pretraining on everything", 60, 11)
    assert short.endswith("…") and "pretraining on everything".startswith(short[:-1])
    width = 11 * sum(advances(FACES[0])[ord(c)] for c in short)
    assert 45 < width <= 60
    assert len(fitted("pretraining on everything", 60, 11, bold=True)) <= len(short)
    assert fitted("any", 1, 11) == "…"
    assert fitted("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 9, 9 * 11 * WIDEST, 11) == "一" * 9
