"""The lending example from the census to a verified packet, held against training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_runs import audited, results, truths

pytestmark = pytest.mark.slow
FAULT, ACCURACY = "approval-gap", "overall-accuracy"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited("lending", tmp_path_factory.mktemp("lending"))


def test_the_audit_names_the_partner(example: Path) -> None:
    result: dict[str, Any] = results(example)
    verdicts = {v["behavior"]: v for v in result["verdicts"]}
    for behavior in (FAULT, "equalized-odds", "impact-ratio"):
        assert verdicts[behavior]["verdict"] == "attributed"
        assert verdicts[behavior]["parties"] == ["partner-files"]
    assert verdicts["qualified-women-refused"]["parties"] == ["partner-files"]
    assert verdicts["qualified-men-refused"]["verdict"] == "absent"
    assert verdicts[ACCURACY]["verdict"] == "absent"
    outcomes = {c["id"]: c["outcome"] for c in result["checks"]}
    assert outcomes["initial-weights"] == "pass"
    assert outcomes["data-use"] != "fail"
    fidelity = next(c for c in result["checks"] if c["id"] == "record-fidelity")
    assert (fidelity["outcome"], fidelity["statistic"]) == ("pass", 0.0)


def test_effects_are_those_of_training_again(example: Path) -> None:
    effects = truths(example)
    assert len(effects) == 30
    for place, (truth, audit) in effects.items():
        assert audit == pytest.approx(truth, abs=2e-6), place
