"""The text of our own PDF reports, run by run, and what they carry: no page is drawn.

Text stands in the pages' content between BT and ET, as glyph numbers that the font's ToUnicode map
names. That is what the report's own writer makes, and anything else is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping

from pyhanko.pdf_utils.generic import ArrayObject, DictionaryObject, StreamObject
from pyhanko.pdf_utils.reader import PdfFileReader

from auditspec.report.exports.readback import MisreportedError

ATTACHMENT = "results.json"
"""The results that the report displays, as an attachment."""
NUMBERS = "numbers.json"
"""Every number that the report shows, with its place in the results, as an attachment."""
MAX_PAGES = 5000
MAX_TEXT = 2**26
"""Bytes of content that a report's pages may have together."""
_TOKEN = re.compile(rb"\[[^\[\]]*\]|<[^<>]*>|/[^\s/<>\[\]]*|[^\s/<>\[\]]+|[<>\[\]]")
"""Of page content; none can be begun where another has failed and run on, so that reading takes linear time."""
_HEX = re.compile(rb"<([0-9A-Fa-f\s]*)>")


class UnreadablePdfError(MisreportedError):
    """A PDF is not of the kind that this tool writes."""


class PdfText:
    """A PDF report, opened.

    Raises:
        UnreadablePdfError: if it is not a PDF, or not one of ours; also from each method.
    """

    def __init__(self, pdf: bytes) -> None:
        try:
            self._root = PdfFileReader(io.BytesIO(pdf), strict=True).root
        except Exception as error:  # a damaged PDF can fail anywhere in its reader
            raise UnreadablePdfError(f"it cannot be read ({error})") from None
        self._fonts: dict[object, dict[bytes, str]] = {}
        self._left = MAX_TEXT

    def attachment(self, name: str) -> bytes:
        """The bytes of an embedded file."""
        try:
            names = self._root["/Names"]["/EmbeddedFiles"]["/Names"]
            for index in range(0, len(names), 2):
                file = names[index + 1]
                if file["/UF"] == name:
                    data: bytes = file["/EF"]["/F"].data
                    return data
        except Exception as error:
            raise UnreadablePdfError(f"its attachments cannot be read ({error})") from None
        raise UnreadablePdfError(f"it does not carry {name}")

    def runs(self) -> tuple[str, ...]:
        """What each text object of each page shows, in order."""
        try:
            return tuple(run for page in self._pages() for run in self._of(page))
        except UnreadablePdfError:
            raise
        except Exception as error:
            raise UnreadablePdfError(f"its text cannot be read ({error})") from None

    def _pages(self) -> Iterator[DictionaryObject]:
        todo, seen = [self._root["/Pages"]], 0
        while todo:
            node = todo.pop()
            seen += 1
            if seen > MAX_PAGES:
                raise UnreadablePdfError(f"it has more than {MAX_PAGES} pages")
            if node["/Type"] == "/Page":
                yield node
            else:
                kids = node["/Kids"]
                todo += [kids[index] for index in reversed(range(len(kids)))]

    def _of(self, page: DictionaryObject) -> Iterator[str]:
        contents = page["/Contents"]
        parts = contents if isinstance(contents, ArrayObject) else [contents]
        fonts = page["/Resources"]["/Font"]
        content = b"\n".join(part.data for part in parts)
        self._left -= len(content)
        if self._left < 0:
            raise UnreadablePdfError(f"its pages have more than {MAX_TEXT} bytes of content")
        shown: list[str] | None = None
        names: dict[bytes, str] = {}
        before, last = b"", b""
        for match in _TOKEN.finditer(content):
            token = match[0]
            if token == b"BT" and shown is None:
                shown, names = [], {}
            elif token == b"ET" and shown is not None:
                yield "".join(shown)
                shown = None
            elif token == b"Tf" and before[:1] == b"/" and shown is not None:
                names = self._font(fonts, before.decode("latin-1"))
            elif token in (b"Tj", b"TJ") and shown is not None:
                shown += _text(last, names)
            before, last = last, token

    def _font(self, fonts: DictionaryObject, name: str) -> dict[bytes, str]:
        key = fonts.raw_get(name)
        key = getattr(key, "reference", name)
        if key not in self._fonts:
            stream = fonts[name]["/ToUnicode"]
            if not isinstance(stream, StreamObject):
                raise UnreadablePdfError("a font does not name its characters")
            self._fonts[key] = _characters(stream.data)
        return self._fonts[key]


def _text(operand: bytes, names: Mapping[bytes, str]) -> Iterator[str]:
    """What a string of glyph numbers, or an array of strings, shows."""
    for glyphs in _HEX.findall(operand):
        digits = b"".join(glyphs.split()).lower()
        for start in range(0, len(digits), 4):
            yield names.get(digits[start : start + 4], "\N{REPLACEMENT CHARACTER}")


def _characters(cmap: bytes) -> dict[bytes, str]:
    """Text of each glyph number, four hex digits, from a ToUnicode map of single characters."""
    characters = {}
    for line in cmap.partition(b"endcodespacerange")[2].splitlines():
        match _HEX.findall(line):
            case [glyph, text] if len(glyph) == 4:
                characters[glyph.lower()] = bytes.fromhex(text.decode()).decode("utf-16-be")
            case [_, _, _, *_]:
                raise UnreadablePdfError("a font names its characters by ranges")
    return characters
