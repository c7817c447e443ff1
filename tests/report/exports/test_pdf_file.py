"""The PDF report: tagged, archival, with results.json inside, the same bytes every time."""

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pypdf
import pytest
from fontTools.ttLib import TTFont
from sample_results import sample_result, signed_result
from sample_variants import hostile_result
from weasyprint.urls import FatalURLFetchingError

from auditspec.artifacts.digest import digest_bytes
from auditspec.report.exports.fonts import font_files
from auditspec.report.exports.html_page import render_html
from auditspec.report.exports.pdf_file import Offline, render_pdf
from auditspec.report.exports.pdf_text import ATTACHMENT, NUMBERS, PdfText
from auditspec.report.exports.readback import check_text, decode, shown_in_html
from auditspec.report.sections import SECTIONS
from auditspec.results import AuditResult

RESULTS = sample_result().model_dump_json(indent=1).encode()


@pytest.fixture(scope="module")
def log() -> Iterator[io.StringIO]:
    """What WeasyPrint complains about while the module's PDFs are made."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("weasyprint").addHandler(handler)
    yield stream
    logging.getLogger("weasyprint").removeHandler(handler)


@pytest.fixture(scope="module")
def sample(log: io.StringIO) -> bytes:
    return render_pdf(sample_result(), RESULTS)


@pytest.fixture(scope="module")
def reader(sample: bytes) -> pypdf.PdfReader:
    return pypdf.PdfReader(io.BytesIO(sample))


def root(reader: pypdf.PdfReader) -> Any:
    return reader.trailer["/Root"]


def structure(reader: pypdf.PdfReader) -> Iterator[Any]:
    """Every element of the structure tree."""
    todo = [root(reader)["/StructTreeRoot"]]
    while todo:
        element = todo.pop().get_object()
        if isinstance(element, dict):
            yield element
            kids = element.get("/K", [])
            todo += [
                kid
                for kid in (kids if isinstance(kids, list) else [kids])
                if not isinstance(kid, int)
            ]


def test_results_json_is_attached_as_it_is(reader: pypdf.PdfReader) -> None:
    assert list(reader.attachments) == [ATTACHMENT, NUMBERS]
    assert reader.attachments[ATTACHMENT] == [RESULTS]
    (file, *_) = root(reader)["/AF"]
    assert file.get_object()["/AFRelationship"] == "/Data"
    stream = file.get_object()["/EF"]["/F"].get_object()
    assert stream["/Subtype"] == "/application/json"
    assert stream["/Params"]["/CreationDate"] == "D:20261123140509Z"


def test_a_picture_that_cannot_be_drawn_is_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """WeasyPrint would leave it out, and the file would not be what the results give."""

    def full(*_: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("weasyprint.svg.SVG.draw", full)
    monkeypatch.setattr(logging.getLogger("weasyprint"), "handlers", [])  # `log` is for the others
    with pytest.raises(MemoryError, match="no more"):
        render_pdf(sample_result(), RESULTS)


def test_a_page_is_read_as_xml_and_otherwise_as_html(sample: bytes) -> None:
    page = render_html(sample_result(), digest_bytes(RESULTS))
    ET.fromstring(page)
    unclosed = page.replace('" />\n<title>', '">\n<title>')
    with pytest.raises(ET.ParseError):
        ET.fromstring(unclosed)
    assert render_pdf(sample_result(), RESULTS, html=unclosed) == sample


def test_its_text_shows_the_numbers_that_it_lists(sample: bytes) -> None:
    pdf = PdfText(sample)
    assert pdf.attachment(ATTACHMENT) == RESULTS
    shown = decode(pdf.attachment(NUMBERS))
    assert shown == shown_in_html(render_html(sample_result()))
    check_text(shown, pdf.runs())


def test_it_is_tagged_and_says_what_it_is(reader: pypdf.PdfReader) -> None:
    assert root(reader)["/MarkInfo"]["/Marked"]
    assert root(reader)["/Lang"] == "en"
    assert root(reader)["/ViewerPreferences"]["/DisplayDocTitle"]
    information = reader.metadata
    assert information is not None
    assert information.title == "Digit reader, release 4.2 – accountability audit digits-2026-q4"
    assert information.author == "Lead auditor, Example Assurance Ltd"
    assert "digits-2026-q4" in information["/Keywords"]
    assert information["/CreationDate"] == information["/ModDate"] == "D:20261123140509Z"


def test_it_declares_archival_and_accessible_conformance(reader: pypdf.PdfReader) -> None:
    metadata = root(reader)["/Metadata"].get_data().decode()
    tree = ET.fromstring(re.sub(r"<\?xpacket.*?\?>", "", metadata))
    declared = {name: value for element in tree.iter() for name, value in element.attrib.items()}
    archival, accessible = "{http://www.aiim.org/pdfa/ns/id/}", "{http://www.aiim.org/pdfua/ns/id/}"
    assert (declared[f"{archival}part"], declared[f"{archival}conformance"]) == ("3", "A")
    assert declared[f"{accessible}part"] == "1"
    assert "<pdfaSchema:prefix>pdfuaid</pdfaSchema:prefix>" in metadata
    assert root(reader)["/OutputIntents"][0]["/S"] == "/GTS_PDFA1"
    assert reader.trailer["/ID"]


def test_pictures_have_alternative_text_and_tables_have_headers(reader: pypdf.PdfReader) -> None:
    elements = list(structure(reader))
    figures = [element for element in elements if element.get("/S") == "/Figure"]
    assert len(figures) == 8
    assert all(figure["/Alt"] for figure in figures)
    cells = [element for element in elements if element.get("/S") == "/TD"]
    assert len(cells) > 100
    assert all(cell["/A"]["/Headers"] for cell in cells)


def test_fonts_are_embedded_and_every_glyph_exists(reader: pypdf.PdfReader) -> None:
    fonts = {}
    for page in reader.pages:
        for name, reference in page["/Resources"]["/Font"].items():
            (descendant,) = reference.get_object()["/DescendantFonts"]
            fonts[name] = descendant.get_object()["/FontDescriptor"]
        shown = page.get_contents()
        assert shown is not None
        for operands, operator in shown.operations:
            if operator in (b"Tj", b"TJ"):
                for part in operands[0] if operator == b"TJ" else operands:
                    if isinstance(part, bytes | str):
                        raw = part if isinstance(part, bytes) else part.original_bytes
                        glyphs = [raw[i : i + 2] for i in range(0, len(raw), 2)]
                        assert b"\0\0" not in glyphs  # glyph 0 stands for a missing character
    assert all("/FontFile2" in font or "/FontFile3" in font for font in fonts.values())


def test_every_page_says_which_report_it_is_and_that_it_is_unsigned(
    reader: pypdf.PdfReader,
) -> None:
    count = len(reader.pages)
    assert 8 <= count <= 17
    for number, page in enumerate(reader.pages, start=1):
        shown = page.extract_text()
        for words in ("UNSIGNED", "digits-2026-q4", "internal", f"Page {number} of {count}"):
            assert words in shown


def test_every_section_has_a_bookmark(reader: pypdf.PdfReader) -> None:
    titles = [item.title for item in reader.outline if not isinstance(item, list)]
    assert [title.split(" ", 1)[1] for title in titles] == [s.title for s in SECTIONS]


def test_the_opinion_is_one_page(reader: pypdf.PdfReader) -> None:
    first, second, third = (reader.pages[i].extract_text() for i in range(3))
    assert "Contents" in first and "Document" not in second
    assert "1 Opinion" in second and "Main limitation." in second
    assert "2 Scope and independence" in third


def test_signed_reports_carry_no_mark(log: io.StringIO) -> None:
    reader = pypdf.PdfReader(io.BytesIO(render_pdf(signed_result(), b"{}")))
    shown = "\n".join(page.extract_text() for page in reader.pages)
    signer = signed_result().signer
    assert "UNSIGNED" not in shown
    assert signer is not None and signer.keyid in shown


def test_hostile_strings_come_out_as_text(log: io.StringIO) -> None:
    made = render_pdf(hostile_result(), b"{}")
    reader = pypdf.PdfReader(io.BytesIO(made))
    assert list(reader.attachments) == [ATTACHMENT, NUMBERS]
    shown = "".join(page.extract_text() for page in reader.pages)
    assert "<script>" in shown and "{{7*7}}" in shown
    assert "root:" not in shown and "\u202e" not in shown
    assert b"/URI" not in made and b"/JavaScript" not in made and b"/Launch" not in made


def test_weasyprint_has_nothing_to_complain_about(sample: bytes, log: io.StringIO) -> None:
    assert sample.startswith(b"%PDF-1.7")
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "https://evil.invalid/x.css",
        "FILE:///etc/passwd",
        "ftp://evil.invalid/",
    ],
)
def test_nothing_but_data_is_fetched(url: str) -> None:
    page = f'<!doctype html><html lang="en"><title>t</title><img alt="x" src="{url}">'
    with pytest.raises(ValueError, match="disallowed protocol"):
        Offline().fetch(url)
    with pytest.raises(FatalURLFetchingError):
        render_pdf(sample_result(), b"{}", html=page)


def test_size(sample: bytes) -> None:
    assert len(sample) < 400_000


@pytest.mark.slow
def test_another_machine_makes_the_same_bytes(sample: bytes, tmp_path: Path) -> None:
    """Another locale, time zone, hash seed, home with a false font of the same name, and font settings."""
    source, fonts = tmp_path / "results.json", tmp_path / "home" / ".fonts"
    source.write_bytes(RESULTS)
    fonts.mkdir(parents=True)
    shipped = {file.name: file for file in font_files()}
    false = TTFont(shipped["LiberationMono-Bold.ttf"])
    for name in false["name"].names:
        if name.nameID in (1, 4, 16):
            name.string = "Liberation Sans"
    false.save(fonts / "false.ttf")
    (tmp_path / "fonts.conf").write_text(
        f"<fontconfig><dir>{fonts}</dir><match><edit name='family' mode='assign'>"
        "<string>Liberation Sans</string></edit></match></fontconfig>"
    )
    script = (
        "import pathlib, sys; from auditspec.report.exports.pdf_file import render_pdf;"
        "from auditspec.results import AuditResult; data = pathlib.Path(sys.argv[1]).read_bytes();"
        "sys.stdout.buffer.write(render_pdf(AuditResult.model_validate_json(data), data))"
    )
    environment = {
        **os.environ,
        **{"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "ja_JP.UTF-8", "FC_LANG": "ja"},
        **{"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)},
        "FONTCONFIG_FILE": str(tmp_path / "fonts.conf"),
    }
    made = subprocess.run(
        [sys.executable, "-c", script, str(source)],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env=environment,
    )
    assert made.stdout == sample


def test_a_naive_date_is_taken_as_utc(sample: bytes) -> None:
    result = sample_result()
    naive: AuditResult = result.model_copy(
        update={
            "run": result.run.model_copy(
                update={"created": result.run.created.replace(tzinfo=None)}
            )
        }
    )
    assert render_pdf(naive, RESULTS) == sample
