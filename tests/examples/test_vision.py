"""The vision example from MNIST to a verified packet, held against fitting again with Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_runs import audited, results, truths

pytest.importorskip("lightning")
pytestmark = pytest.mark.slow
FAULT, ACCURACY = "patched-read-as-zero", "overall-accuracy"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited("vision", tmp_path_factory.mktemp("vision"))


def test_the_audit_names_the_supplier(example: Path) -> None:
    result: dict[str, Any] = results(example)
    verdicts = {v["behavior"]: v for v in result["verdicts"]}
    assert verdicts[FAULT]["verdict"] == "attributed"
    assert verdicts[FAULT]["parties"] == ["new-supplier"]
    assert verdicts["plain-read-as-zero"]["verdict"] == "absent"
    assert verdicts[ACCURACY]["verdict"] == "absent"
    outcomes = {c["id"]: c["outcome"] for c in result["checks"]}
    assert outcomes["initial-weights"] == outcomes["data-use"] == "pass"
    fidelity = next(c for c in result["checks"] if c["id"] == "record-fidelity")
    assert (fidelity["outcome"], fidelity["statistic"]) == ("pass", 0.0)


def test_effects_are_those_of_training_again_with_lightning(example: Path) -> None:
    effects = truths(example)
    assert len(effects) == 15
    for place, (truth, audit) in effects.items():
        assert audit == pytest.approx(truth, abs=2e-6), place
