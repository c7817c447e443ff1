"""A field that is withheld is not to be taken for any value."""

import copy
import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
from sample_packet import packet_result

from auditspec.errors import WithheldError
from auditspec.results import AuditResult
from auditspec.withheld import Undisclosed, is_withheld, marker, opened, withheld_in

HIDDEN: Any = Undisclosed("/a/0")
DOCUMENT = json.loads(packet_result().model_dump_json())


@pytest.mark.parametrize(
    "use",
    [
        bool,
        len,
        iter,
        str,
        float,
        int,
        hash,
        "{}".format,
        lambda x: x == 0,
        lambda x: x != "",
        lambda x: x in (None, 0),
        lambda x: x < 1,
        lambda x: x < 1,
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: -x,
        lambda x: x[0],
        lambda x: x.value,
        lambda x: {x: 1},
        lambda x: {"a": 1}.get(x),
        lambda x: max(1.0, x),
        lambda x: f"{x:.2f}",
        operator.itemgetter(0),
        sum,
        sorted,
        abs,
    ],
)
def test_any_use_is_an_error(use: Callable[[Any], object]) -> None:
    with pytest.raises(WithheldError, match="/a/0 is withheld"):
        use(HIDDEN)


def hiding(*places: tuple[str | int, ...]) -> AuditResult:
    document = copy.deepcopy(DOCUMENT)
    for place in places:
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = marker("0" * 64, "secret")
    return opened(AuditResult, document).less(withheld_in(document))


def test_fields_without_a_marker_are_what_they_were() -> None:
    whole, part = packet_result(), hiding(("evidence", 0, "path"), ("paths", 0, "levels", 1))
    assert is_withheld(part.evidence[0].path, part.paths[0].levels)
    assert part.evidence[1:] == whole.evidence[1:] and part.verdicts == whole.verdicts
    assert part.paths[0].states == whole.paths[0].states
    assert [item.pointer for item in part.withheld] == ["/evidence/0/path", "/paths/0/levels/1"]


@pytest.mark.parametrize("wrong", ["x", 1, None, [], {"value": 1}, {"behavior": 5}])
def test_the_rest_is_validated_as_ever(wrong: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["evidence"][0]["path"] = marker("0" * 64, "secret")
    document["effects"] = [wrong]
    with pytest.raises(ValueError):
        opened(AuditResult, document)


def test_nothing_can_be_left_out_or_added_beside_a_marker() -> None:
    for change in (lambda e: e.pop("name"), lambda e: e.update(other=1)):
        document = copy.deepcopy(DOCUMENT)
        document["evidence"][0]["path"] = marker("0" * 64, "secret")
        change(document["evidence"][0])
        with pytest.raises(ValueError, match="/evidence/0"):
            opened(AuditResult, document)
