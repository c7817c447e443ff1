"""Effects as comma-separated values."""

from auditspec.report.exports import Export, Source


class Table(Export):
    """One line an effect."""

    name = "csv"
    file = "effects.csv"
    media_type = "text/csv"

    def render(self, source: Source) -> bytes:
        rows = (f"{e.behavior},{e.stage},{e.value!r}" for e in source.result.effects)
        return "\n".join(["behavior,stage,effect", *rows, ""]).encode()
