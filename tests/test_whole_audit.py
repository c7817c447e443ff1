"""What `plan --measure` says of a whole audit, against what one then does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_audit import edit_spec, lock

from auditspec.api import audit, plan
from auditspec.behaviors.plug_in import PlugIn
from auditspec.whole_audit import WholeAudit

OFF = 0.2
"""How far a forecast may be from what is then counted."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Examples that an audit reads, those in float64 twice."""
    found = {"read": 0.0}
    scores = PlugIn._all_scores

    def counting(self: PlugIn, *arguments: Any) -> Any:
        wide = 2 if self.scoring.rerun.dtype == torch.float64 else 1
        found["read"] += wide * sum(len(part.ids) for part in self.slices.values())
        return scores(self, *arguments)

    monkeypatch.setattr(PlugIn, "_all_scores", counting)
    return found


def forecast(spec: Path) -> WholeAudit:
    whole = plan(spec, measure=True, isolation="none").whole
    assert whole is not None
    return whole


def test_an_audit_does_what_was_counted(
    audit_spec: Path, tmp_path: Path, counted: dict[str, float]
) -> None:
    lock(audit_spec)
    said, once = forecast(audit_spec), counted["read"]
    counted["read"] = 0.0
    result = audit(audit_spec, cache=tmp_path / "cache", isolation="none")
    # the second of three stages leads: one stage after it is walked off its path, where two are counted
    assert said.gradients * 0.7 < result.run.gradients <= said.gradients
    assert counted["read"] / once == pytest.approx(said.readings, rel=OFF)
    assert said.seconds > 0
    assert said.memory > 50e6  # python, torch, and pandas alone


def test_a_check_that_is_not_made_is_not_counted(audit_spec: Path) -> None:
    lock(audit_spec)
    whole = forecast(audit_spec)
    edit_spec(audit_spec, lambda data: data["checks"].update(placebo={"draws": 0}))
    without = forecast(audit_spec)
    edit_spec(audit_spec, lambda data: data["checks"].update(precision={"examples": 0, "steps": 0}))
    least = forecast(audit_spec)
    assert whole.readings > without.readings > least.readings
    assert whole.gradients == without.gradients > least.gradients
