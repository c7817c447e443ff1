import datetime as dt
from pathlib import Path

import pytest
from factories import SPEC_TEXT, minimal_spec, to_yaml
from hypothesis import given
from hypothesis import strategies as st

from auditspec.errors import SpecError
from auditspec.spec.models import Spec
from auditspec.spec.source import parse

FILE = Path("audit.yaml")

pieces = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "*a", "&a ", "!t ", '"', "'", "|\n", "? ",
     "%YAML 1.1\n", "---\n", "...\n", "#", "\t", "1", ".inf", "<<", "\\", "\\x", "\u2028", "@", "`"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode),
                 st.lists(pieces, max_size=25).map(lambda parts: "".join(parts).encode())))  # fmt: skip
def test_any_bytes_give_a_spec_error(data: bytes) -> None:
    with pytest.raises(SpecError) as caught:
        parse(data, FILE)
    assert caught.value.problems
    assert all(problem.line > 0 and problem.column > 0 for problem in caught.value.problems)


@given(
    st.integers(0, len(SPEC_TEXT) - 1),
    st.one_of(pieces, st.characters(codec="utf-8")),
    st.booleans(),
)
def test_a_damaged_spec_is_valid_or_gives_a_spec_error(at: int, piece: str, insert: bool) -> None:
    damaged = SPEC_TEXT[:at] + piece + SPEC_TEXT[at + (not insert) :]
    try:
        loaded = parse(damaged.encode(), FILE)
    except SpecError as error:
        assert all(problem.line > 0 for problem in error.problems)
    else:
        assert isinstance(loaded.spec, Spec)


visible = st.characters(categories=["L", "N", "P", "S", "Zs"])
plain_text = st.text(visible, min_size=1, max_size=30)
optimizers = st.fixed_dictionaries(
    {"name": plain_text, "lr": st.floats(1e-300, 1e300)},
    optional={
        "momentum": st.floats(0, 1e6),
        "nesterov": st.booleans(),
        "betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        "options": st.dictionaries(plain_text, st.floats(-1e9, 1e9) | st.booleans() | plain_text),
    },
)
specs = st.builds(
    lambda title, date, where, optimizer, tolerance, seed: {
        **minimal_spec(),
        "audit": {"id": "x", "title": title, "expires": date.isoformat()},
        "stages": [{**minimal_spec()["stages"][0], "optimizer": optimizer}],
        "behaviors": [
            {
                **minimal_spec()["behaviors"][0],
                "where": where,
                "concern": {"direction": "decrease", "tolerance": tolerance},
            }
        ],
        "checks": {"seed": seed},
    },
    plain_text, st.dates(dt.date(1970, 1, 1)), st.sampled_from([None, "digit == 3", "a in ['x: y']"]),
    optimizers, st.floats(0, 1e12), st.integers(0, 2**32 - 1),
)  # fmt: skip


@given(specs)
def test_a_spec_survives_writing_and_reading(data: dict[str, object]) -> None:
    spec = parse(to_yaml(data).encode(), FILE).spec
    written = to_yaml(spec.model_dump(mode="json", by_alias=True))
    assert parse(written.encode(), FILE).spec == spec
