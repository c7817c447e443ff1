"""The PDF report: the HTML report in print, tagged and archival, with results.json inside.

The file declares PDF/A-3a (archival, tagged, with an associated file) and PDF/UA-1 (accessible).
WeasyPrint writes one of the two declarations; `_declare_accessible` adds the other.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree as ET

from cssselect2 import ElementWrapper
from weasyprint import HTML, Attachment
from weasyprint.urls import URLFetcher

from auditspec.artifacts.digest import digest_bytes
from auditspec.report.exports.fonts import ShippedFonts
from auditspec.report.exports.html_page import render_html
from auditspec.report.exports.pdf_text import ATTACHMENT, NUMBERS
from auditspec.report.exports.readback import encode, shown_in_html
from auditspec.report.numbers import utc
from auditspec.results import AuditResult

VARIANT = "pdf/a-3a"
_NOWHERE = "about:blank"
_ACCESSIBLE = b"""\
<rdf:Description xmlns:pdfuaid="http://www.aiim.org/pdfua/ns/id/" rdf:about="" pdfuaid:part="1"/>\
<rdf:Description xmlns:pdfaExtension="http://www.aiim.org/pdfa/ns/extension/" \
xmlns:pdfaSchema="http://www.aiim.org/pdfa/ns/schema#" \
xmlns:pdfaProperty="http://www.aiim.org/pdfa/ns/property#" rdf:about="">\
<pdfaExtension:schemas><rdf:Bag><rdf:li rdf:parseType="Resource">\
<pdfaSchema:schema>PDF/UA identification</pdfaSchema:schema>\
<pdfaSchema:namespaceURI>http://www.aiim.org/pdfua/ns/id/</pdfaSchema:namespaceURI>\
<pdfaSchema:prefix>pdfuaid</pdfaSchema:prefix>\
<pdfaSchema:property><rdf:Seq><rdf:li rdf:parseType="Resource">\
<pdfaProperty:name>part</pdfaProperty:name>\
<pdfaProperty:valueType>Integer</pdfaProperty:valueType>\
<pdfaProperty:category>internal</pdfaProperty:category>\
<pdfaProperty:description>part of ISO 14289 that the file follows</pdfaProperty:description>\
</rdf:li></rdf:Seq></pdfaSchema:property>\
</rdf:li></rdf:Bag></pdfaExtension:schemas></rdf:Description>"""


class Offline(URLFetcher):  # type: ignore[misc]
    """Fetches `data:` URLs and refuses every other, files included, by stopping the rendering."""

    def __init__(self) -> None:
        super().__init__(allowed_protocols=("data",), allow_redirects=False, fail_on_errors=True)


class Page(HTML):  # type: ignore[misc]
    """A page that is read as XML, by which no report differs, in a hundredth of the time.

    One that a plug-in's section kept from being well-formed is read as HTML.
    """

    def __init__(self, page: str, fetcher: URLFetcher) -> None:
        try:
            root = ET.fromstring(page)  # noqa: S314 - our own page, which declares no entities
        except ET.ParseError:
            super().__init__(string=page, base_url=_NOWHERE, url_fetcher=fetcher)
            return
        self.base_url, self.url_fetcher, self.media_type = _NOWHERE, fetcher, "print"
        self.wrapper_element = ElementWrapper.from_html_root(root)
        self.etree_element = root


def render_pdf(result: AuditResult, results_json: bytes, *, html: str | None = None) -> bytes:
    """The report as a PDF; the same bytes for the same arguments and fonts.

    Args:
        result: what was found.
        results_json: the bytes of results.json, attached as they are.
        html: `render_html`, where the caller has it already.

    Raises:
        weasyprint.urls.FatalURLFetchingError: if the report would load anything.
        Exception: what kept WeasyPrint from drawing a picture, a `MemoryError` among others.
    """
    fetcher, created = Offline(), utc(result.run.created)
    html = render_html(result, digest_bytes(results_json)) if html is None else html
    carried = (
        (ATTACHMENT, results_json, "The results that this report displays"),
        (NUMBERS, encode(shown_in_html(html)), "The numbers shown, and their place in the results"),
    )
    attachments = [
        Attachment(
            file_obj=io.BytesIO(data),
            name=name,
            description=description,
            created=created,
            modified=created,
            relationship="Data",
            url_fetcher=fetcher,
        )
        for name, data, description in carried
    ]
    document = Page(html, fetcher)
    with _whole(), warnings.catch_warnings():  # WeasyPrint leaves its colour profile open
        warnings.filterwarnings("ignore", ".*sRGB2014.icc", ResourceWarning)
        pdf: bytes = document.write_pdf(
            finisher=_declare_accessible,
            font_config=ShippedFonts(),
            pdf_variant=VARIANT,
            attachments=attachments,
        )
    return pdf


@contextmanager
def _whole() -> Iterator[None]:
    """WeasyPrint only logs what keeps it from drawing a picture, and goes on without; here that is raised."""
    causes = _Causes(logging.ERROR)
    logger = logging.getLogger("weasyprint")
    logger.addHandler(causes)
    try:
        yield
    finally:
        logger.removeHandler(causes)
    for cause in causes.all:
        raise cause


class _Causes(logging.Handler):
    """The exceptions that are logged where they are caught."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.all: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if cause := sys.exc_info()[1]:
            self.all.append(cause)


def _declare_accessible(_: Any, pdf: Any) -> None:
    """Add the PDF/UA-1 identification, and the schema that PDF/A asks for, to the metadata."""
    number = int(pdf.catalog["Metadata"].split()[0])
    metadata = pdf.objects[number]
    metadata.stream = [metadata.stream[0].replace(b"</rdf:RDF>", _ACCESSIBLE + b"</rdf:RDF>")]
