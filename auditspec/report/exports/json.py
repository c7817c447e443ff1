"""The results themselves, for programs."""

from __future__ import annotations

from auditspec.report.exports.interface import Export, Source


class Json(Export):
    """`results.json`, from which every other export is made; every packet holds it."""

    name = "json"
    file = "results.json"
    media_type = "application/json"

    def render(self, source: Source) -> bytes:
        """The bytes of results.json as they are."""
        return source.data
