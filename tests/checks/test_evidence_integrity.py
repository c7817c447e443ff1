from __future__ import annotations

import pytest
from said import said, saying

from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.results import Evidence


def item(name: str, state: str) -> Evidence:
    return Evidence.model_validate(
        {
            "name": name,
            "kind": "file",
            "path": f"{name}.bin",
            "state": state,
            "notes": (saying("why"),),
        }
    )


@pytest.mark.parametrize(
    ("states", "outcome", "bad"),
    [
        (["verified"], "pass", 0),
        (["verified", "verified"], "pass", 0),
        (["verified", "declared"], "inconclusive", 0),
        (["verified", "missing"], "fail", 1),
        (["mismatched", "verified"], "fail", 1),
        (["declared", "missing", "mismatched"], "fail", 2),
    ],
)
def test_the_worst_state_decides(states: list[str], outcome: str, bad: int) -> None:
    evidence = [item(f"a{i}", state) for i, state in enumerate(states)]
    found = EvidenceIntegrity(evidence).run()
    assert (found.outcome, found.statistic, found.threshold, found.bars) == (
        outcome,
        bad,
        0,
        "all",
    )
    assert [detail.subject for detail in found.details] == [e.name for e in evidence]
    for e in evidence:
        guilty = e.state in ("missing", "mismatched")
        assert (f"{e.name} ({e.path}) is {e.state}" in said(found.reasons)) == guilty
    assert [d.outcome == "fail" for d in found.details] == [
        e.state in ("missing", "mismatched") for e in evidence
    ]
    if outcome == "inconclusive":
        assert "a1" in said(found.reasons)
        assert "a0" not in said(found.reasons)
