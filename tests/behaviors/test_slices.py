from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.behaviors.header import column_names
from auditspec.behaviors.slices import select
from auditspec.errors import EvidenceError

FRAME = pd.DataFrame(
    {
        "digit": [3, 8, 3, 1],
        "score": [0.5, np.nan, 2.0, -1.0],
        "source": ["scan", "web", None, "scan"],
        "flag": [True, False, True, False],
        "odd name": [1, 2, 3, 4],
        "group": pd.Categorical(["a", "b", "a", "c"]),
        "count": pd.array([1, None, 3, 4], dtype="Int64"),
        "small": np.array([1, 2, 3, 255], dtype=np.uint8),
        "empty": [np.nan] * 4,
        "when": pd.to_datetime(["2026-01-01"] * 4),
    },
    index=[7, 7, 5, 3],  # labels are not row numbers
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (None, [0, 1, 2, 3]),
        ("digit == 3", [0, 2]),
        ("3 == digit", [0, 2]),
        ("digit == 3.0", [0, 2]),
        ("digit != 3", [1, 3]),
        ("digit in [1, 8]", [1, 3]),
        ("digit not in [1, 8]", [0, 2]),
        ("score > 0", [0, 2]),
        ("score != 0.5", [2, 3]),
        ("score not in [0.5]", [2, 3]),
        ("not score == 0.5", [1, 2, 3]),
        ("source == 'scan'", [0, 3]),
        ("source != 'scan'", [1]),
        ("source < 't'", [0, 3]),
        ("flag == true", [0, 2]),
        ("flag != true", [1, 3]),
        ("`odd name` >= 3", [2, 3]),
        ("group == 'a'", [0, 2]),
        ("count >= 3", [2, 3]),
        ("small < 300", [0, 1, 2, 3]),
        ("small == 255", [3]),
        ("digit < `odd name`", [3]),
        ("score < count", [0, 2, 3]),
        ("digit == 3 and score > 1 or digit == 8", [1, 2]),
        ("digit == 3 and (score > 1 or digit == 8)", [2]),
        ("empty == 1 or digit == 1", [3]),
    ],
)
def test_rows(where: str | None, rows: list[int]) -> None:
    selected = select(FRAME, where)
    assert selected.dtype == np.int64
    assert selected.tolist() == rows


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("digt == 3", "no column 'digt'\n  remedy: did you mean 'digit'?"),
        ("zzz == 3", "columns: digit, score, source"),
        ("digit == 'three'", "compares a number with a text"),
        ("source > 3", "compares a text with a number"),
        ("flag == 1", "compares a truth value with a number"),
        ("flag < true", "compares a truth value with a truth value"),
        ("digit in [3, 'x']", "compares a number with a text"),
        ("digit == source", "compares a number with a text"),
        ("when == '2026-01-01'", "cannot be compared"),
        ("digit == 4", "no row of 4 matches where: digit == 4"),
        ("empty == 1", "no row of 4"),
    ],
)
def test_what_cannot_be_selected(where: str, words: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        select(FRAME, where)
    assert words in str(caught.value)
    assert caught.value.remedy


def test_ambiguous_and_empty_frames() -> None:
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(EvidenceError, match="2 columns 'a'"):
        select(twice, "a == 1")
    with pytest.raises(EvidenceError, match="no rows"):
        select(FRAME.iloc[:0], None)


@given(st.lists(st.integers(-5, 5), min_size=1), st.integers(-5, 5))
def test_a_condition_and_its_negation_split_the_rows(values: list[int], bound: int) -> None:
    frame = pd.DataFrame({"x": values})
    rows: list[int] = []
    for where in (f"x < {bound}", f"not x < {bound}"):
        with suppress(EvidenceError):  # one side may be empty
            rows += select(frame, where).tolist()
    assert sorted(rows) == list(range(len(values)))


class TestHeader:
    def test_csv_and_parquet_agree(self, tmp_path) -> None:
        frame = pd.DataFrame({"digit": [1], "odd, name": ["x"]})
        frame.to_csv(tmp_path / "t.csv", index=False)
        frame.to_parquet(tmp_path / "t.parquet")
        for name in ("t.csv", "t.parquet"):
            assert column_names(tmp_path / name) == ["digit", "odd, name"]

    def test_other_formats_have_no_header(self, tmp_path) -> None:
        assert column_names(tmp_path / "t.npz") is None

    @pytest.mark.parametrize(
        ("name", "data"), [("t.parquet", b"PAR1 not parquet"), ("t.csv", b"\xff\xfe\x00")]
    )
    def test_damage(self, tmp_path, name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EvidenceError, match="header cannot be read"):
            column_names(tmp_path / name)

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(EvidenceError, match="no such file"):
            column_names(tmp_path / "t.csv")
