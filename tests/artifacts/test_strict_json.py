import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.artifacts import strict_json
from auditspec.errors import EvidenceError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.booleans())
def test_reads_what_json_writes(value: object, escaped: bool) -> None:
    data = json.dumps(value, ensure_ascii=escaped).encode()
    assert strict_json.parse(data, "it") == value


@given(st.binary() | st.text().map(str.encode))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        strict_json.parse(data, "it")
    except EvidenceError as error:
        assert error.message.startswith("it: ")


def test_integers_keep_every_digit() -> None:
    assert strict_json.parse(b"[9007199254740993, 123456789012345678901]", "it") == [
        2**53 + 1,
        123456789012345678901,
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": {"b": 1, "b": 1}}', "'b' stands twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' stands twice"),
        (b"NaN", "NaN"),
        (b"-Infinity", "Infinity"),
        (b"1e999", "out of range"),
        (b'"\\ud800"', "surrogates"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'"\xff"', "utf-8"),
        (b"{} {}", "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "digits"),
        (b"", "Expecting value"),
    ],
)
def test_refuses_what_means_two_things(data: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        strict_json.parse(data, "it")
