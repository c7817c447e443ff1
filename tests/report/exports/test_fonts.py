"""Only the shipped fonts are there, and the fonts that are there are whole."""

import os
import re

import pytest
from fontTools.ttLib import TTFont
from weasyprint import HTML

from auditspec.report.exports.fonts import ShippedFonts, font_files
from auditspec.report.palette import stylesheet

SHOWN = "Aäßéłőœ Ωλσ ЖяЇ €−×·…–“”‹›→≤≥≈∞√ρ ●◐◔◆◈▲◇▽▿△○✓✗▪ ₂²⁻ fi"


def test_every_script_that_is_promised_can_be_shown() -> None:
    characters = set().union(*(TTFont(file).getBestCmap() for file in font_files()))
    assert {ord(character) for character in SHOWN} <= characters


def test_each_family_of_the_style_sheet_is_shipped() -> None:
    families = {TTFont(file)["name"].getDebugName(1) for file in font_files()}
    first = re.findall(r'font(?:-family)?:[^;"]*"([^"]+)"', stylesheet())
    assert first and set(first) <= families


def test_whatever_the_page_asks_for_it_gets_a_shipped_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FONTCONFIG_FILE", "of the user")
    page = '<p style="font-family: DejaVu Serif, Liberation Serif, serif">a</p><code>b</code>'
    pdf = HTML(string=page).write_pdf(font_config=ShippedFonts(), uncompressed_pdf=True)
    names = set(re.findall(rb"/BaseFont /\w+\+([\w-]+)", pdf))
    assert names and all(name.startswith((b"Liberation-", b"DejaVu-Sans")) for name in names)
    assert b"Serif" not in b"".join(names)
    assert os.environ["FONTCONFIG_FILE"] == "of the user"


def test_licences_are_shipped_with_the_fonts() -> None:
    licences = {file.stem.removeprefix("LICENSE-") for file in font_files()[0].parent.glob("*.txt")}
    assert licences == {re.match("DejaVu|Liberation", file.name)[0] for file in font_files()}
