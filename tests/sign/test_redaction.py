import copy
import json
from pathlib import Path
from typing import Any

import pytest
from sample_packet import packet_files, packet_result

from auditspec.errors import UsageError
from auditspec.sign import redaction, salts
from auditspec.sign.disclosure import Disclosure, root_of
from auditspec.sign.redaction import Disclosures, Redacted, withhold
from auditspec.sign.statement import Statement
from auditspec.withheld import leaves, marker, withheld_in

FILES = packet_files(packet_result(), pdf=False)
DOCUMENT = json.loads(FILES["results.json"])
SALTS = Disclosure.fresh(FILES)
STATEMENT = Statement.of(packet_result(), FILES, SALTS)
PATH = "/evidence/0/path"


def without(*pointers: str) -> Redacted:
    return withhold(FILES, SALTS, pointers, "a trade secret")


@pytest.mark.parametrize(
    "pointer",
    [PATH, "/limitations", "/evidence", "/approver", "/effects/0/value", "/verdicts", "/checks/0"],
)
def test_the_root_stays_and_the_values_are_gone_and_can_be_proved(pointer: str) -> None:
    redacted = without(pointer)
    assert root_of(redacted.document, redacted.disclosure) == STATEMENT.predicate.results
    assert redacted.disclosure.seeds != SALTS.seeds
    hidden = withheld_in(redacted.document)
    below = [p for p, _ in leaves(DOCUMENT) if p == pointer or p.startswith(f"{pointer}/")]
    assert {item.pointer for item in hidden} == {*below} | (
        set() if "spec.yaml" in redacted.files else {"/run/spec_digest", "/run/environment"}
    )
    held = Disclosures(disclosures=list(redacted.openings))
    assert redaction.require_proved(hidden, STATEMENT, held) == len(redacted.openings)
    assert Disclosures.decode(held.encode(), "f") == held
    shown = redacted.disclosure.encode().decode() + json.dumps(redacted.document)
    assert not [o.what for o in redacted.openings if o.salt in shown]


def test_no_salt_that_is_handed_out_gives_one_that_is_not() -> None:
    redacted = without(PATH)
    known = dict(salts.salts(redacted.disclosure.known(redacted.document)))
    every = dict(salts.salts(SALTS.known(DOCUMENT)))
    index = [p for p, _ in leaves(DOCUMENT)].index(PATH)
    assert known.keys() == every.keys() - {
        index,
        *(
            [p for p, _ in leaves(DOCUMENT)].index(pointer)
            for pointer in ("/run/spec_digest", "/run/environment")
        ),
    }
    assert len(redacted.disclosure.seeds) <= 3 * 12  # and not one a leaf


def test_equal_values_have_unlike_commitments() -> None:
    redacted = without("/evidence")
    commitments = [item.commitment for item in withheld_in(redacted.document)]
    values = [json.dumps(opening.value) for opening in redacted.openings]
    assert len(set(values)) < len(values)
    assert len(set(commitments)) == len(commitments)


def test_more_can_be_withheld_of_what_is_left() -> None:
    first = without("/limitations")
    files = {**first.files, "results.json": redaction.encode_results(first.document)}
    second = withhold(files, first.disclosure, ["/limitations", "/effects/0/value"], "also secret")
    assert root_of(second.document, second.disclosure) == STATEMENT.predicate.results
    assert [o.what for o in second.openings] == ["/effects/0/value"]


def test_the_spec_stays_where_it_cannot_tell() -> None:
    assert set(without("/effects/0/value").files) >= {"spec.yaml", "spec.resolved.json"}
    assert not {"spec.yaml", "spec.resolved.json"} & without(PATH).files.keys()
    assert "evidence.json" not in without(PATH).files


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ("/nowhere", "nothing that can be withheld"),
        ("/evidence/99/path", "nothing that can be withheld"),
        ("/evidence/0/path/0", "nothing that can be withheld"),
        ("/evidence/-1", "nothing that can be withheld"),
        ("evidence", "nothing that can be withheld"),
        ("", "nothing that can be withheld"),
        ("/", "nothing that can be withheld"),
        ("/signer", "nothing that can be withheld"),
        ("/run", "nothing that can be withheld"),
        ("/audit/id", "nothing that can be withheld"),
        ("/auditspec_results", "nothing that can be withheld"),
        ("/behaviors/0/id", "the same text stands in"),
        ("/findings/0/statement", "the same text stands in /verdicts/0/statement"),
    ],
)
def test_what_cannot_be_withheld(pointer: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        without(pointer)


@pytest.mark.parametrize("reason", ["", "x" * 301])
def test_a_reason_is_short(reason: str) -> None:
    with pytest.raises(UsageError, match="1 to 300"):
        withhold(FILES, SALTS, [PATH], reason)


def test_what_proves_nothing() -> None:
    redacted = without(PATH)
    hidden = withheld_in(redacted.document)
    (first, *_) = redacted.openings
    for change in ({"value": "elsewhere/"}, {"salt": "0" * 64}, {"what": "/evidence/1/path"}):
        forged = Disclosures(disclosures=[first.model_copy(update=change)])
        with pytest.raises(Exception, match="does not commit to this value"):
            redaction.require_proved(hidden, STATEMENT, forged)


def test_a_malformed_disclosure_file() -> None:
    for data in (b"", b"{}", json.dumps({"disclosures": [{"what": "x"}]}).encode()):
        with pytest.raises(UsageError, match="redact"):
            Disclosures.decode(data, "f")


@pytest.mark.parametrize(
    "wrong",
    [
        {"$withheld": "0" * 64},
        {"$withheld": 1, "reason": "r"},
        marker("0" * 63, "r"),
        marker("0" * 64, ""),
    ],
)
def test_a_malformed_marker(wrong: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["evidence"][0]["path"] = wrong
    with pytest.raises(ValueError, match="/evidence/0/path"):
        withheld_in(document)


def test_the_tree_is_quick(tmp_path: Path) -> None:
    import time

    document = {"rows": [{"id": f"example {i}", "score": i / 7} for i in range(50_000)]}
    start = time.process_time()
    root = root_of(document, Disclosure.fresh({}))
    assert root.leaves == 100_000 and time.process_time() - start < 4  # 1.3 s where it was measured
