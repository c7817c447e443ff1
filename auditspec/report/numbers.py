"""Numbers in words and digits: significant digits, units, signs, sizes, durations, dates.

An interval decides the digits of its value: two significant digits of half its width. Every
function returns parts that carry the pointer into results.json.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from auditspec.report.parts import HIDDEN, Code, Number, Phrase, clean
from auditspec.results import DIFFERENCE_OF_SHARES, Effect
from auditspec.withheld import unless_withheld

P = ParamSpec("P")

MINUS, NBSP = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


@dataclass(frozen=True)
class Unit:
    """How values of a metric's unit are shown.

    Attributes:
        level: unit of a value; empty where the number stands alone.
        change: unit of a difference.
        scale: shown number = value * scale.
    """

    level: str
    change: str
    scale: float = 1.0


def unit_of(name: str) -> Unit:
    """The display unit of a metric: shares and probabilities are shown in per cent."""
    if name in ("share", "probability"):
        return Unit("%", "percentage points", 100.0)
    if name == DIFFERENCE_OF_SHARES:
        return Unit("percentage points", "percentage points", 100.0)
    name = clean(name, 40)
    return Unit(name, name)


def or_withheld(show: Callable[P, Phrase]) -> Callable[P, Phrase]:
    """The function, which says `withheld` where a value that it shows is."""

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> Phrase:
        return unless_withheld(lambda: show(*args, **kwargs), (HIDDEN,))

    return shown


def decimal(value: float, places: int) -> str:
    """A decimal with thousands separators and a true minus sign; never a negative zero."""
    text = f"{value:,.{places}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def scientific(value: float, digits: int = 2) -> str:
    """For example `3.1 × 10⁻⁷`."""
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = str(int(exponent)).translate(SUPERSCRIPT)
    return f"{mantissa.replace('-', MINUS)}{NBSP}×{NBSP}10{power}"


def read(text: str) -> float:
    """The number that a displayed text shows: the inverse of the formats here, up to rounding."""
    mantissa, _, power = text.replace(",", "").replace(MINUS, "-").partition(f"{NBSP}×{NBSP}10")
    digits = {ord(shown): plain for plain, shown in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
    return float(f"{mantissa}e{power.translate(digits) or 0}")


def significant(value: float, digits: int = 3) -> str:
    """`value` to a number of significant digits."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return scientific(value, digits)
    return decimal(value, max(0, digits - 1 - _power(value, digits)))


def general(value: float, digits: int = 3) -> str:
    """`value` to at most so many significant digits, without zeros at the end: 0.5, 18.9, 1,234."""
    mantissa, times, power = significant(value, digits).partition(f"{NBSP}×")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}{times}{power}"


def _power(value: float, digits: int) -> int:
    """Power of ten of a number that is rounded to some digits: 0 for 0.9999 and three digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def declared(value: float) -> str:
    """A number that someone typed, as it was typed: no digits are added."""
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return scientific(
            value, len(f"{value:.5e}".partition("e")[0].rstrip("0.").lstrip("-").replace(".", ""))
        )
    text = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"
    return text.replace("-", MINUS)


def places(value: float, low: float | None, high: float | None) -> int | None:
    """Decimals that an interval justifies: two significant digits of half its width.

    Three significant digits of the value where there is no interval; None where only scientific
    notation is readable.
    """
    half = 0.0 if low is None or high is None else (high - low) / 2
    size, digits = (half, 2) if half > 0 else (abs(value), 3)
    if size == 0:
        return 0
    if not 1e-4 <= max(abs(value), size) < 1e9:
        return None
    return min(8, max(0, digits - 1 - math.floor(math.log10(size))))


@or_withheld
def plain(value: float | None, ref: str, unit: str = "", *, typed: bool = False) -> Phrase:
    """A number and its unit, or a dash where there is none."""
    if value is None:
        return ("–",)
    text = declared(value) if typed or float(value).is_integer() else significant(value)
    return (Number(text, value, ref), *_tail(clean(unit, 40)))


@or_withheld
def count(value: int | float | None, ref: str, unit: str = "") -> Phrase:
    """A whole number with its unit, or a dash."""
    if value is None:
        return ("–",)
    places_ = 0 if float(value).is_integer() else 1
    return (Number(decimal(value, places_), value, ref), *_tail(unit))


@or_withheld
def percent(value: float | None, ref: str) -> Phrase:
    """A share as a percentage with one decimal, or a dash."""
    if value is None:
        return ("–",)
    return (Number(decimal(value * 100, 1), value, ref, 100.0), f"{NBSP}%")


@or_withheld
def confidence(value: float | None, ref: str) -> Phrase:
    """A probability from resampling: never stated as certainty, which no resampling shows."""
    if value is not None and value > 0.999:
        return (f"more than 99.9{NBSP}%",)
    return percent(value, ref)


@or_withheld
def size(value: int | None, ref: str) -> Phrase:
    """Bytes in the largest binary unit that leaves a number of at least one."""
    if value is None:
        return ("–",)
    power = min(4, max(0, (value.bit_length() - 1) // 10)) if value > 0 else 0
    name = ("bytes", "KiB", "MiB", "GiB", "TiB")[power]
    shown = decimal(value / 1024**power, 0 if power == 0 else 1)
    return (Number(shown, value, ref, 1 / 1024**power), f"{NBSP}{name}")


@or_withheld
def duration(value: float | None, ref: str) -> Phrase:
    """Seconds in s, min, h, or days."""
    if value is None:
        return ("–",)
    for length, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if value >= 2 * length:
            return (Number(decimal(value / length, 1), value, ref, 1 / length), f"{NBSP}{name}")
    return (Number(significant(value, 2), value, ref), f"{NBSP}s")


@or_withheld
def level(value: float | None, ref: str, unit: Unit, digits: int = 4) -> Phrase:
    """A metric's value in its unit, or a dash; percentages with two decimals at most."""
    if value is None:
        return ("–",)
    shown = value * unit.scale
    text = significant(shown, digits)
    if unit.scale == 100.0 and 0.1 <= abs(shown) < 100:
        text = decimal(shown, max(0, min(2, digits - 1 - _power(shown, digits))))
    return (Number(text, value, ref, unit.scale), *_tail(unit.level))


@or_withheld
def tolerance(value: float, ref: str, unit: Unit) -> Phrase:
    """A declared difference in the metric's unit."""
    return (Number(declared(value * unit.scale), value, ref, unit.scale), *_tail(unit.change))


@or_withheld
def limit(value: float, ref: str, unit: Unit) -> Phrase:
    """A declared level in the metric's unit."""
    return (Number(declared(value * unit.scale), value, ref, unit.scale), *_tail(unit.level))


@or_withheld
def moved(
    value: float | None, ref: str, unit: Unit, more: str, less: str, same: str = "unchanged"
) -> Phrase:
    """A difference whose sign is said in words: `grew by 0.42 logits`; a dash where there is none."""
    if value is None:
        return ("–",)
    if value == 0:
        return (same,)
    size = Number(significant(abs(value * unit.scale)), value, ref, unit.scale)
    return (f"{more if value > 0 else less} ", size, *_tail(unit.change))


@or_withheld
def effect_in_words(effect: Effect, ref: str, unit: Unit, *, interval: bool = True) -> Phrase:
    """For example `raised by 0.42 logits (0.31 to 0.55)`.

    Where the interval crosses zero, its ends say so: `raised by 0.02 logits (lowered by 0.05 to
    raised by 0.09)`.
    """
    if effect.value == 0 and not effect.low and not effect.high:
        return ("left unchanged (", Number("0", effect.value, f"{ref}/value"), ")")
    digits = _places(effect, unit)
    value = _number(effect.value, f"{ref}/value", unit, digits, sign=False)
    verb = "raised by " if effect.value > 0 else "lowered by "
    head: Phrase = (verb, value, *_tail(unit.change))
    if not interval or effect.low is None or effect.high is None:
        return head
    low = _number(effect.low, f"{ref}/low", unit, digits, sign=False)
    high = _number(effect.high, f"{ref}/high", unit, digits, sign=False)
    if effect.low < 0 < effect.high:
        return (*head, " (lowered by ", low, " to raised by ", high, ")")
    near, far = (low, high) if effect.value > 0 else (high, low)
    return (*head, " (", near, " to ", far, ")")


@or_withheld
def signed(effect: Effect, ref: str, unit: Unit) -> Phrase:
    """The effect as a signed number, without its unit: `+0.42`."""
    return (_number(effect.value, f"{ref}/value", unit, _places(effect, unit), sign=True),)


@or_withheld
def interval(effect: Effect, ref: str, unit: Unit) -> Phrase:
    """The interval as signed numbers: `+0.31 to +0.55`, or a dash."""
    if effect.low is None or effect.high is None:
        return ("–",)
    digits = _places(effect, unit)
    low = _number(effect.low, f"{ref}/low", unit, digits, sign=True)
    high = _number(effect.high, f"{ref}/high", unit, digits, sign=True)
    return (low, " to ", high)


def date(value: dt.date | None) -> str:
    """`23 November 2026`, whatever the locale."""
    return "–" if value is None else f"{value.day} {MONTHS[value.month - 1]} {value.year}"


def utc(value: dt.datetime) -> dt.datetime:
    """The time in UTC; a naive one is taken to be in UTC already."""
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def date_and_time(value: dt.datetime) -> str:
    """`23 November 2026, 14:05 UTC`."""
    return f"{date(utc(value))}, {utc(value):%H:%M} UTC"


def timestamp(value: dt.datetime) -> str:
    """`2026-11-23T14:05:09Z`, for machines."""
    return f"{utc(value):%Y-%m-%dT%H:%M:%SZ}"


@or_withheld
def digest(value: str | None, length: int = 12) -> Phrase:
    """A digest cut to its first hex digits; the whole value stays available."""
    if value is None:
        return ("–",)
    value = clean(value, 160)
    scheme, colon, digits = value.rpartition(":")
    short = f"{scheme}{colon}{digits[:length]}…" if len(digits) > length else value
    return (Code(short, value),)


def _places(effect: Effect, unit: Unit) -> int | None:
    low, high = (None if end is None else end * unit.scale for end in (effect.low, effect.high))
    return places(effect.value * unit.scale, low, high)


def _number(value: float, ref: str, unit: Unit, digits: int | None, *, sign: bool) -> Number:
    shown = value * unit.scale if sign else abs(value * unit.scale)
    text = scientific(shown) if digits is None else decimal(shown, digits)
    zero = not text.strip(f"0.,{MINUS}")
    return Number(f"+{text}" if sign and value > 0 and not zero else text, value, ref, unit.scale)


def _tail(unit: str) -> Phrase:
    return (f"{NBSP}{unit}",) if unit else ()
