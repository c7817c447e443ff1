"""The unrecorded example: three rounds that nobody recorded, trained again, audited, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_runs import audited, results, truths

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

ROUNDS = {"first": 5, "indexed": 2, "last": 1}
"""Checkpoints that each round saved."""
FAULT, OTHERS = "letter-taken-for-gospel", "other-parts"
IMPORT = ["-m", "auditspec", "record", "import", "audit.yaml", "--every", "40"]
IMPORT += [part for name in ROUNDS for part in ("--checkpoints", f"{name}=build/output/{name}")]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unrecorded")
    return audited("unrecorded", folder, ["code/train.py"], IMPORT)


def test_every_checkpoint_is_met(example: Path):
    header = json.loads((example / "build" / "record" / "record.json").read_text())
    assert [s["id"] for s in header["stages"]] == list(ROUNDS)
    fidelity = next(c for c in results(example)["checks"] if c["id"] == "record-fidelity")
    assert (fidelity["outcome"], fidelity["statistic"]) == ("pass", 0.0)


def test_the_audit_names_the_round_with_the_wrong_index(example: Path):
    result: dict[str, Any] = results(example)
    verdicts = {v["behavior"]: v for v in result["verdicts"]}
    assert verdicts[FAULT]["verdict"] == "attributed"
    assert verdicts[FAULT]["parties"] == ["indexed"]
    assert verdicts[OTHERS]["verdict"] == "absent"


def test_effects_are_those_of_training_again_with_transformers(example: Path):
    effects = truths(example)
    assert len(effects) == 6
    for place, (truth, audit) in effects.items():
        assert audit == pytest.approx(truth, abs=2e-6), place
