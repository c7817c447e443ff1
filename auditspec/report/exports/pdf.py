"""The PDF report as an export; `pdf_file` makes it, `pdf_text` reads it."""

from __future__ import annotations

from auditspec.artifacts import strict_json
from auditspec.report.exports.html import Html
from auditspec.report.exports.interface import Export, Source
from auditspec.report.exports.readback import (
    MisreportedError,
    check_numbers,
    check_text,
    decode,
)
from auditspec.report.print_library import load_weasyprint


class Pdf(Export):
    """The report as an archival, accessible PDF, which carries the results."""

    name = "pdf"
    file = "report.pdf"
    media_type = "application/pdf"
    default = True
    pades = True

    def render(self, source: Source) -> bytes:
        """The HTML report in print."""
        load_weasyprint()
        from auditspec.report.exports.pdf_file import render_pdf

        page = source.rendered(Html()).decode()
        return render_pdf(source.result, source.data, html=page)

    def look_into(self, data: bytes, source: Source) -> None:
        """It carries these results."""
        from auditspec.report.exports.pdf_text import ATTACHMENT, PdfText

        if PdfText(data).attachment(ATTACHMENT) != source.data:
            raise MisreportedError(f"the {ATTACHMENT} inside it is another one")

    def read_back(self, data: bytes, source: Source) -> str:
        """Its text shows the numbers of its list, which are those of the results."""
        from auditspec.report.exports.pdf_text import NUMBERS, PdfText

        pdf = PdfText(data)
        shown = decode(pdf.attachment(NUMBERS))
        check_numbers(shown, strict_json.parse(source.data, "results"))
        check_text(shown, pdf.runs())
        return f"{len(shown)} numbers"
