"""Whether a report's numbers are those of results.json: what holds, and what is found out."""

import json
from typing import Any

import pytest

from auditspec.report.exports.readback import (
    MisreportedError,
    Shown,
    check_numbers,
    check_text,
    decode,
    encode,
    shown_in_html,
)
from auditspec.report.numbers import declared

RESULTS: dict[str, Any] = {
    "a": [{"b": 1.2345}, {"b": -0.5}],
    "c/d": 3,
    "e": None,
    "f": "4",
    "g": True,
}


@pytest.mark.parametrize(
    ("text", "ref", "value", "scale"),
    [
        ("1.2", "/a/0/b", 1.2345, 1.0),
        ("1.23", "/a/0/b", 1.2345, 1.0),
        ("+1.235", "/a/0/b", 1.2345, 1.0),
        ("123", "/a/0/b", 1.2345, 100.0),
        ("0.5", "/a/1/b", -0.5, 1.0),  # in words: lowered by 0.5
        ("\N{MINUS SIGN}0.50", "/a/1/b", -0.5, 1.0),
        ("3", "/c~1d", 3, 1.0),
        ("3,000", "/c~1d", 3, 1000.0),
        ("1.23\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁰", "/a/0/b", 1.2345, 1.0),
    ],
)
def test_numbers_that_are_right(text: str, ref: str, value: float, scale: float) -> None:
    check_numbers([Shown(text, ref, value, scale)], RESULTS)


@pytest.mark.parametrize(
    ("text", "ref", "value"),
    [
        ("1.3", "/a/0/b", 1.2345),
        ("1.24", "/a/0/b", 1.2345),
        ("1", "/a/0/b", 1.9),
        ("+0.5", "/a/1/b", -0.5),
        ("\N{MINUS SIGN}1.23", "/a/0/b", 1.2345),
        ("twelve", "/a/0/b", 1.2345),
        ("", "/a/0/b", 1.2345),
        ("1.2", "/a/2/b", 1.2345),
        ("1.2", "/a/x/b", 1.2345),
        ("1.2", "/z", 1.2345),
        ("0", "/e", 0),
        ("4", "/f", 4),
        ("1", "/g", 1),
    ],
)
def test_numbers_that_are_wrong(text: str, ref: str, value: float) -> None:
    with pytest.raises(MisreportedError):
        check_numbers([Shown(text, ref, value)], RESULTS)


def test_a_report_without_references_is_refused() -> None:
    with pytest.raises(MisreportedError, match="refers to no number"):
        check_numbers([], RESULTS)


def test_html() -> None:
    html = '<p>It is <data value="1.2345" data-ref="/a/0/b" data-scale="100.0">12<b>3</b></data> &amp; more.</p>'
    assert shown_in_html(html) == (Shown("123", "/a/0/b", 1.2345, 100.0),)
    assert shown_in_html(html.replace("data", "div")) == ()
    for bad in ('value="x"', 'value="NaN"', "", 'value="true x"'):
        with pytest.raises(MisreportedError):
            shown_in_html(html.replace('value="1.2345"', bad))
    with pytest.raises(MisreportedError, match="no text or reference"):
        shown_in_html(html.replace("data-ref", "data-x"))


def test_the_list_survives_its_encoding() -> None:
    shown = (Shown("1.2", "/a/0/b", 1.2345), Shown("3", "/c~1d", 2**63 + 1, 100.0))
    assert decode(encode(shown)) == shown
    for bad in (b"", b"{}x", b"[1]", b'[{"text": 1}]', json.dumps([{"text": "1"}]).encode()):
        with pytest.raises(MisreportedError):
            decode(bad)


def test_text_must_show_the_numbers_in_order() -> None:
    shown = [Shown("1.2", "/x", 1.2), Shown("0.5", "/y", 0.5)]
    check_text(shown, ["It is", " 1.2", "or", "0.5 ", "."])
    for runs in ([], ["0.5", "1.2"], ["1.2"], ["1.25", "0.5"]):
        with pytest.raises(MisreportedError, match="does not show"):
            check_text(shown, runs)


@pytest.mark.parametrize("value", [0.0, 0.02, 3.0, 1234567.0, 987654321.0, 1e12, 2.5e-7, 123456.7])
def test_declared_numbers_can_be_read_back(value: float) -> None:
    check_numbers([Shown(declared(value), "/v", value)], {"v": value})


@pytest.mark.parametrize(
    ("html", "said"),
    [
        (
            '<data value="1" data-ref="/x">999<data value="1" data-ref="/x">1</data></data>',
            "inside",
        ),
        ('<data value="1" data-ref="/x">777', "does not end"),
        ("<![foo[ x ]]>", "cannot be read"),
        (f'<data value="1{400 * "0"}" data-ref="/x">1</data>', "not given as a number"),
        (f'<data value="{"[" * 200_000}" data-ref="/x">1</data>', "has no value"),
        ('<data value="true" data-ref="/x">1</data>', "not given as a number"),
    ],
    ids=["nested", "unclosed", "declaration", "huge", "deep", "bool"],
)
def test_html_that_hides_a_number_or_breaks_its_reader(html: str, said: str) -> None:
    with pytest.raises(MisreportedError, match=said):
        shown_in_html(html)


@pytest.mark.parametrize("text", ["1 × 10⁹⁹⁹", "1" + 400 * "0"])
def test_texts_that_no_float_holds(text: str) -> None:
    with pytest.raises(MisreportedError, match="it shows"):
        check_numbers([Shown(text, "/v", 1.0)], {"v": 1.0})
    with pytest.raises(MisreportedError):
        decode(b'[{"text": "1", "ref": "/v", "value": 1' + 400 * b"0" + b"}]")
    with pytest.raises(MisreportedError, match="it shows"):
        check_numbers([Shown("1", "/v", 1e300, 1e300)], {"v": 1e300})
