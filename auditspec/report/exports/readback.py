"""Reading a report back: whether every number that it shows is the one in results.json.

In HTML a number is a `data` element with a pointer into results.json. The PDF carries the same list
as an attachment, and each of its entries must stand in the page's text, in that order.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from auditspec.artifacts import strict_json
from auditspec.errors import AuditspecError, EvidenceError
from auditspec.report.numbers import MINUS, read

ROUNDING = 0.5 + 1e-6
"""Most that a shown number may differ, in units of its last digit."""


_NAME = re.compile(r"/?[a-zA-Z][a-zA-Z0-9-]*")
_ATTRIBUTE = re.compile(r"""\s([a-z-]+)=["']([^"']*)["']""")


class MisreportedError(AuditspecError):
    """A report shows something else than results.json; the text says where."""


@dataclass(frozen=True)
class Shown:
    """A number as a report shows it, and where it comes from."""

    text: str
    ref: str
    """JSON pointer into results.json (RFC 6901)."""
    value: float | int
    """The number there."""
    scale: float = 1.0


def shown_in_html(page: str) -> tuple[Shown, ...]:
    """Every number of an HTML report that says where it comes from, in order.

    Reports are written without `<` and `>` inside attributes; nothing else is read, in time linear in the page.

    Raises:
        MisreportedError: if the markup is of another kind, or a reference is malformed.
    """
    shown: list[Shown] = []
    number: dict[str, str] | None = None
    texts: list[str] = []
    for tag, text in _markup(page):
        name = (_NAME.match(tag) or [""])[0].lower()
        if name == "data":
            if number is not None:
                raise MisreportedError("a number stands inside a number")
            number = {key: html.unescape(value) for key, value in _ATTRIBUTE.findall(tag)}
            texts = []
        elif name == "/data" and number is not None:
            shown.append(_number(number, "".join(texts)))
            number = None
        if number is not None:
            texts.append(text)
    if number is not None:
        raise MisreportedError("a number does not end")
    return tuple(shown)


def encode(shown: Sequence[Shown]) -> bytes:
    """The list as the PDF carries it."""
    return json.dumps([asdict(number) for number in shown], ensure_ascii=False).encode()


def decode(data: bytes) -> tuple[Shown, ...]:
    """The list that a PDF carries: the inverse of `encode`.

    Raises:
        MisreportedError: if it is malformed.
    """
    try:
        return tuple(_shown(**item) for item in strict_json.parse(data, "numbers"))
    except (EvidenceError, TypeError, ValueError) as error:
        raise MisreportedError(f"its list of numbers cannot be read ({error})") from None


def check_numbers(shown: Sequence[Shown], results: Any) -> None:
    """Check every number against results.json, as parsed.

    Raises:
        MisreportedError: if there is none, or one is not what stands in results.json, rounded.
    """
    if not shown:
        raise MisreportedError("it refers to no number of results.json")
    for number in shown:
        value = _resolve(results, number.ref)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != number.value:
            raise MisreportedError(
                f"it gives {number.ref} as {number.value!r}, results.json has {value!r}"
            )
        if not _rounds_to(number.text, float(value) * number.scale):
            raise MisreportedError(
                f"it shows {number.text!r} for {number.ref}, which is {value * number.scale!r}"
            )


def check_text(shown: Sequence[Shown], runs: Sequence[str]) -> None:
    """Check that a PDF's text, in runs, holds the numbers of its list in order.

    Raises:
        MisreportedError: naming the first number that does not stand where it should.
    """
    rest = (_spaced(run) for run in runs)
    for number in shown:
        if not any(run == _spaced(number.text) for run in rest):
            raise MisreportedError(f"its text does not show {number.text!r} for {number.ref}")


def _spaced(text: str) -> str:
    """The text with plain single spaces: a PDF does not tell one kind from another."""
    return " ".join(text.split())


def _rounds_to(text: str, value: float) -> bool:
    try:
        shown = read(text.removeprefix("+"))
    except (ValueError, OverflowError):
        return False
    if not (math.isfinite(shown) and math.isfinite(value)):
        return False
    if text[:1] in ("+", MINUS) and shown != 0 and (text[0] == "+") != (value > 0):
        return False
    mantissa, _, power = text.partition("×")
    exponent = math.floor(math.log10(abs(shown))) if power and shown else 0
    unit = 10.0 ** (exponent - len(mantissa.strip().partition(".")[2]))
    return abs(abs(shown) - abs(value)) <= ROUNDING * unit + 1e-12 * abs(value)


def _resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer points at; None where there is nothing."""
    value = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9]\d{0,8}", key):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def _shown(text: Any, ref: Any, value: Any, scale: Any = 1.0) -> Shown:
    if not isinstance(text, str) or not isinstance(ref, str):
        raise MisreportedError("a number of its list has no text or reference")
    if not (_is_number(value) and _is_number(scale)):
        raise MisreportedError(f"{ref} is not given as a number")
    return Shown(text, ref, value, scale)


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _markup(page: str) -> Iterator[tuple[str, str]]:
    """What stands between `<` and `>`, and the text after it; a comment has no text of its own."""
    at = page.find("<")
    while at >= 0:
        end = "-->" if page.startswith("<!--", at) else ">"
        close = page.find(end, at)
        following = page.find("<", at + 1)
        if close < 0 or (end == ">" and 0 <= following < close):
            raise MisreportedError("it cannot be read: a tag does not end")
        if end != ">":
            following = page.find("<", close)
        tag = page[at + 1 : close] if end == ">" else "!"
        if tag.startswith("!["):
            raise MisreportedError("it cannot be read: a section that HTML does not have")
        yield tag, page[close + len(end) : following if following >= 0 else len(page)]
        at = following


def _number(given: dict[str, str], text: str) -> Shown:
    """The number of a `data` element."""
    try:
        value = strict_json.parse(given.get("value", "").encode(), "value")
        scale = strict_json.parse(given.get("data-scale", "1.0").encode(), "data-scale")
        return _shown(html.unescape(text), given.get("data-ref"), value, scale)
    except (EvidenceError, ValueError):
        raise MisreportedError(f"{given.get('data-ref')} has no value") from None
