"""The lending example from the census to a verified packet, held against retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_audit import audited, beside_truth

from benchmarks.settings.adult import ARCHIVE

pytestmark = pytest.mark.slow
FAULT = "approval-gap"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lending") / "lending"


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return audited("lending", ARCHIVE, folder)


def test_the_partner_is_named(results: dict[str, Any]) -> None:
    verdicts = {v["behavior"]: v for v in results["verdicts"]}
    assert verdicts[FAULT]["verdict"] == "attributed"
    assert verdicts[FAULT]["parties"] == ["partner-files"]
    assert verdicts["qualified-women-refused"]["parties"] == ["partner-files"]
    outcomes = {c["id"]: c["outcome"] for c in results["checks"]}
    assert all(
        outcomes[id_] == "pass" for id_ in ("record-fidelity", "optimizer-match", "initial-weights")
    )


def test_every_effect_is_that_of_retraining(folder: Path, results: dict[str, Any]) -> None:
    beside = beside_truth(folder)
    exact = {(*e["arm"], e["behavior"]) for e in results["effects"] if e["exact"]}
    assert len(beside) == 5 * 4
    for stage, behaviour, true, said in beside:
        if (f"omit {stage}", behaviour) in exact:
            assert said == pytest.approx(true, abs=1e-3), (stage, behaviour)
