import datetime as dt
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_packet import packet_files, packet_result

from auditspec.errors import SignatureError
from auditspec.sign.disclosure import Disclosure, root_of
from auditspec.sign.statement import Statement

SALTS = Disclosure.fresh(packet_files(packet_result()))


@pytest.fixture
def statement() -> Statement:
    result = packet_result()
    return Statement.of(result, packet_files(result), SALTS)


def test_lists_every_file_and_the_facts(statement: Statement) -> None:
    result = packet_result()
    files = packet_files(result)
    stored = json.loads(statement.encode())
    assert stored["_type"] == "https://in-toto.io/Statement/v1"
    assert stored["predicateType"] == "urn:auditspec:packet:1"
    assert {s["name"]: s["digest"]["salted_sha256"] for s in stored["subject"]} == {
        name: hashlib.sha256(bytes.fromhex(SALTS.files[name]) + data).hexdigest()
        for name, data in files.items()
    }
    assert stored["predicate"] == {
        "audit": "digits-2026-q4",
        "tool": result.run.tool,
        "created": "2026-11-23T14:05:09+00:00",
        "results": root_of(json.loads(files["results.json"]), SALTS).model_dump(),
    }


def test_created_is_in_utc_wherever_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    result = packet_result()
    files = packet_files(result)
    for moment in (
        dt.datetime(2026, 11, 23, 14, 5, 9),
        dt.datetime(2026, 11, 23, 16, 5, 9, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ):
        run = result.run.model_copy(update={"created": moment})
        stated = Statement.of(result.model_copy(update={"run": run}), files, SALTS)
        assert stated.predicate.created == "2026-11-23T14:05:09+00:00"


def test_the_payload_is_canonical(statement: Statement) -> None:
    payload = statement.encode()
    again = json.dumps(
        json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert payload == again.encode()
    assert Statement.decode(payload) == statement


def test_integers_above_two_to_the_53_survive(statement: Statement) -> None:
    payload = re.sub(rb'"leaves":\d+', b'"leaves":9007199254740993', statement.encode())
    assert Statement.decode(payload).predicate.results.leaves == 2**53 + 1


def _changed(statement: Statement, *path: Any, to: Any) -> bytes:
    document = json.loads(statement.encode())
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1", "_type"),
        (("predicateType",), "https://slsa.dev/provenance/v1", "predicateType"),
        (("predicateType",), "urn:auditspec:packet:2", "predicateType"),
        (("more",), 1, "more: Extra"),
        (("predicate", "more"), 1, "predicate.more: Extra"),
        (("predicate", "results", "leaves"), 1.0, "predicate.results.leaves"),
        (("predicate", "results", "leaves"), True, "predicate.results.leaves"),
        (("predicate", "results", "leaves"), 0, "predicate.results.leaves"),
        (("predicate", "results", "root"), "00", "predicate.results.root"),
        (("predicate", "verdicts"), {}, "predicate.verdicts: Extra"),
        (("subject",), [], "subject"),
        (("subject", 0, "name"), "results.json", "results.json is listed twice"),
        (("subject", 0, "name"), "../x", "hidden"),
        (("subject", 0, "name"), "a/x", "not the name of a file"),
        (("subject", 0, "digest"), {"salted_sha256": "A" * 64}, "subject.0.digest.salted_sha256"),
        (("subject", 0, "digest"), {"salted_sha256": "a" * 64, "md5": ""}, "subject.0.digest.md5"),
        (("subject", 0, "uri"), "x", "subject.0.uri: Extra"),
    ],
)
def test_decode_is_strict(statement: Statement, path: Any, to: Any, said: str) -> None:
    with pytest.raises(SignatureError, match=said) as caught:
        Statement.decode(_changed(statement, *path, to=to))
    assert caught.value.step == "statement-wellformed"


def test_repeated_keys_are_refused(statement: Statement) -> None:
    payload = statement.encode().replace(b'"audit":', b'"audit":"other","audit":')
    with pytest.raises(SignatureError, match="'audit' stands twice"):
        Statement.decode(payload)


@given(st.binary() | st.text().map(lambda text: json.dumps({"_type": text}).encode()))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(SignatureError, match="statement-wellformed"):
        Statement.decode(data)
