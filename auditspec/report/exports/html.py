"""The HTML report as an export; `html_page` makes it."""

from __future__ import annotations

from auditspec.artifacts import strict_json
from auditspec.report.exports.interface import Export, Source
from auditspec.report.exports.readback import MisreportedError, check_numbers, shown_in_html


class Html(Export):
    """The report as one HTML file."""

    name = "html"
    file = "report.html"
    media_type = "text/html"
    default = True

    def render(self, source: Source) -> bytes:
        """The page, in UTF-8."""
        from auditspec.report.exports.html_page import render_html

        return render_html(source.result, source.digest).encode()

    def read_back(self, data: bytes, source: Source) -> str:
        """Every number that says where it comes from is the one there, rounded."""
        try:
            shown = shown_in_html(data.decode())
        except UnicodeDecodeError as error:
            raise MisreportedError(str(error)) from None
        check_numbers(shown, strict_json.parse(source.data, "results"))
        return f"{len(shown)} numbers"
